//! Latents of pictures that come back unchanged, kept within a bound. Only targets that fill their
//! square do: all others are placed anew each time, on a pad of another colour. A picture is known
//! by its bytes, so nothing else can change what is answered; that its latent has the same bits in
//! whatever company it is encoded is for a test to say. Called by the diffusion model.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use tch::Tensor;

/// SHA-256 of a picture's bytes.
pub(crate) type ImageKey = [u8; 32];

pub(crate) fn key(image: &image::RgbImage) -> ImageKey {
    Sha256::digest(image.as_raw()).into()
}

/// See the module's header. When it is full it keeps what it has: in an order that goes round and
/// round, dropping the oldest would drop each one shortly before it is wanted.
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

    /// The latents of all pictures [P, 3, S, S], of which `encode` sees only those that are not
    /// known. `keys`: of those that may come back.
    pub(crate) fn encode(
        &mut self,
        images: &Tensor,
        keys: &[Option<ImageKey>],
        encode: impl Fn(&Tensor) -> Tensor,
    ) -> Tensor {
        let known: Vec<Option<Tensor>> = keys
            .iter()
            .map(|key| Some(self.latents.get(key.as_ref()?)?.shallow_clone()))
            .collect();
        let missing = (0i64..).zip(&known).filter(|(_, it)| it.is_none());
        let missing: Vec<i64> = missing.map(|(at, _)| at).collect();
        let fresh = if missing.len() == keys.len() {
            encode(images).unbind(0)
        } else if missing.is_empty() {
            Vec::new()
        } else {
            let index = Tensor::from_slice(&missing).to_device(images.device());
            encode(&images.index_select(0, &index)).unbind(0)
        };
        let mut fresh = fresh.into_iter();
        let mut latents = Vec::with_capacity(keys.len());
        for (known, key) in known.into_iter().zip(keys) {
            latents.push(match known {
                Some(latent) => latent,
                None => {
                    let latent = fresh.next().expect("one for each that was missing");
                    self.keep(key.as_ref(), &latent);
                    latent
                }
            });
        }
        Tensor::stack(&latents, 0)
    }

    fn keep(&mut self, key: Option<&ImageKey>, latent: &Tensor) {
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
    fn what_is_known_is_not_encoded_again_and_the_bound_holds() {
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
        // There is room for one.
        assert_eq!(run(&images.narrow(0, 0, 2), &keys[..2]), [10., 20.]);
        assert_eq!(run(&images.narrow(0, 0, 1), &keys[..1]), [10.]);
        assert_eq!(*seen.borrow(), [vec![1., 2., 3.], vec![2., 3.], vec![2.]]);
    }
}
