//! A bounded cache of the latents of images that recur unchanged. Only targets without padding do:
//! other images get a new position and padding colour each time. The key is a digest of the bytes
//! of an image, so entries cannot be stale. A test checks that a latent has the same bits whatever
//! other images are in its batch. Used by the diffusion model.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use tch::Tensor;

/// SHA-256 of an image's bytes.
pub(crate) type ImageKey = [u8; 32];

pub(crate) fn image_key(image: &image::RgbImage) -> ImageKey {
    Sha256::digest(image.as_raw()).into()
}

/// Bounded cache; entries are never evicted. Training visits the images in cyclic order, where
/// evicting the oldest entry would evict each one shortly before its next use.
#[derive(Debug)]
pub(crate) struct LatentCache {
    bytes_max: usize,
    bytes: usize,
    latents: BTreeMap<ImageKey, Tensor>,
}

impl LatentCache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            latents: BTreeMap::new(),
        }
    }

    /// The latents of images [P, 3, S, S]; calls `encode` only on those that are not cached. `keys`
    /// has a key for each image that may recur.
    pub(crate) fn encode(
        &mut self,
        images: &Tensor,
        keys: &[Option<ImageKey>],
        encode: impl Fn(&Tensor) -> Tensor,
    ) -> Tensor {
        let cached: Vec<Option<Tensor>> = keys
            .iter()
            .map(|key| Some(self.latents.get(key.as_ref()?)?.shallow_clone()))
            .collect();
        let missing = (0i64..).zip(&cached).filter(|(_, it)| it.is_none());
        let missing: Vec<i64> = missing.map(|(index, _)| index).collect();
        let encoded = if missing.len() == keys.len() {
            encode(images).unbind(0)
        } else if missing.is_empty() {
            Vec::new()
        } else {
            let index = Tensor::from_slice(&missing).to_device(images.device());
            encode(&images.index_select(0, &index)).unbind(0)
        };
        let mut encoded = encoded.into_iter();
        let mut latents = Vec::with_capacity(keys.len());
        for (cached, key) in cached.into_iter().zip(keys) {
            latents.push(match cached {
                Some(latent) => latent,
                None => {
                    let latent = encoded.next().expect("every missing image was encoded");
                    self.insert(key.as_ref(), &latent);
                    latent
                }
            });
        }
        Tensor::stack(&latents, 0)
    }

    fn insert(&mut self, key: Option<&ImageKey>, latent: &Tensor) {
        let bytes = latent.numel() * latent.kind().elt_size_in_bytes();
        if let Some(key) = key
            && self.bytes + bytes <= self.bytes_max
            && self.latents.insert(*key, latent.copy()).is_none()
        {
            self.bytes += bytes;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn cached_images_are_not_encoded_again_and_the_bound_holds() {
        let images = Tensor::from_slice(&[1f32, 2., 3.]).view([3, 1, 1, 1]);
        let keys = [Some([1; 32]), None, Some([3; 32])];
        let seen = RefCell::new(Vec::new());
        let mut cache = LatentCache::new(4);
        let mut run = |images: &Tensor, keys: &[Option<ImageKey>]| {
            let latents = cache.encode(images, keys, |xs| {
                seen.borrow_mut()
                    .push(Vec::<f32>::try_from(xs.flatten(0, -1)).unwrap());
                xs * 10.0
            });
            Vec::<f32>::try_from(latents.flatten(0, -1)).unwrap()
        };
        for _ in 0..2 {
            assert_eq!(run(&images, &keys), [10., 20., 30.]);
        }
        // The cache has room for one latent.
        assert_eq!(run(&images.narrow(0, 0, 2), &keys[..2]), [10., 20.]);
        assert_eq!(run(&images.narrow(0, 0, 1), &keys[..1]), [10.]);
        assert_eq!(*seen.borrow(), [vec![1., 2., 3.], vec![2., 3.], vec![2.]]);
    }
}
