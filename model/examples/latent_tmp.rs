#![allow(clippy::unwrap_used)]
use model::{autoencoder::Autoencoder, parameter::Parameters, weights};
use model_data::loader::{Loader, LoaderOptions};
use tch::{Device, Kind, Tensor};
fn main() {
    let a: Vec<String> = std::env::args().skip(1).collect();
    let text = std::fs::read_to_string(&a[0]).unwrap();
    let spec = proto::job::parse(&a[0], &text, std::path::Path::new(&a[0]).canonicalize().unwrap().parent()).unwrap();
    tch::set_num_threads(1);
    let rt = tokio::runtime::Runtime::new().unwrap();
    let loader = rt.block_on(Loader::open(&spec.data, LoaderOptions { needs_references: false, cache_bytes: 1 << 30, version: None })).unwrap();
    let ex = rt.block_on(loader.examples(1, 128, 0..128)).unwrap();
    let p = Parameters::seeded(0, Device::Cpu);
    let ae = Autoencoder::new(&p.root().sub("autoencoder"), &spec.model.autoencoder);
    let w = weights::read(std::path::Path::new(&a[1])).unwrap();
    weights::load("x", &w, &p.under("autoencoder.")).unwrap();
    let bytes: Vec<u8> = ex.iter().flat_map(|e| e.target.as_raw().iter().copied()).collect();
    let x = Tensor::from_slice(&bytes).view([-1, 64, 64, 3]).permute([0, 3, 1, 2]).contiguous().to_kind(Kind::Float) / 127.5 - 1.0;
    let _g = tch::no_grad_guard();
    let m = ae.encode(&x);
    println!("mean {:?} std {} scale {}", Vec::<f64>::try_from(m.mean.mean_dim([0i64, 2, 3].as_slice(), false, Kind::Double)).unwrap(), m.mean.std(true).double_value(&[]), 1.0 / m.mean.std(true).double_value(&[]));
    println!("std per channel {:?}; posterior sd {}", Vec::<f64>::try_from(m.mean.std_dim([0i64, 2, 3].as_slice(), true, false).to_kind(Kind::Double)).unwrap(), (m.log_variance * 0.5).exp().mean(Kind::Double).double_value(&[]));
    let y = ae.decode(&m.mean);
    println!("MAE {}", (&y - &x).abs().mean(Kind::Double).double_value(&[]));
    let pair = Tensor::cat(&[x.narrow(0, 0, 12), y.narrow(0, 0, 12)], 0).clamp(-1., 1.);
    let b = ((pair + 1.) * 127.5).to_kind(Kind::Uint8).permute([0, 2, 3, 1]).contiguous();
    let mut g = image::RgbImage::new(64 * 12, 128);
    let mut v = vec![0u8; b.numel()]; let n = v.len(); b.copy_data(&mut v, n);
    for (i, c) in v.chunks(64 * 64 * 3).enumerate() {
        image::imageops::replace(&mut g, &image::RgbImage::from_raw(64, 64, c.to_vec()).unwrap(), (i as i64 % 12) * 64, (i as i64 / 12) * 64);
    }
    image::imageops::resize(&g, 64 * 24, 256, image::imageops::FilterType::Nearest).save(&a[2]).unwrap();
}
