use model::{parameter::Parameters, unet::UNet, autoencoder::Autoencoder, text::TextEncoder, retrinet::*};
use proto::spec::*;
use std::time::Instant;
use tch::{Device, Kind, Tensor};
fn time(name: &str, mut f: impl FnMut()) {
    f();
    let mut best = f64::MAX;
    for _ in 0..5 { let t = Instant::now(); f(); best = best.min(t.elapsed().as_secs_f64()); }
    println!("{name}: {:.1} ms", best * 1e3);
}
fn main() {
    tch::set_num_threads(1);
    let o = (Kind::Float, Device::Cpu);
    let (u0, a0, t0) = proto::size::named("small").unwrap();
    for (c, mult, groups) in [(32, vec![1, 2, 4], 16), (24, vec![1,2,4], 8), (16, vec![1, 2, 4], 16), (16, vec![1, 2, 6], 16)] {
        let a = AutoencoderConfig { channels: c, channel_mult: mult.clone(), norm_groups: groups, ..a0.clone() };
        let p = Parameters::seeded(1, Device::Cpu);
        let ae = Autoencoder::new(&p.root(), &a);
        let x = Tensor::rand([48, 64, 64, 3], o).permute([0, 3, 1, 2]);
        println!("ae {c} {mult:?}: {} params", p.count());
        time(" encode 48 pictures", || { tch::no_grad(|| ae.encode(&x)); });
        let y = Tensor::rand([48, 3, 64, 64], o);
        time(" encode 48 pictures nchw", || { tch::no_grad(|| ae.encode(&y)); });
        for t in p.tensors().values() { let _ = t.set_requires_grad(true); }
        let x = x.narrow(0, 0, 16);
        time(" train 16", || { let m = ae.encode(&x); ae.decode(&m.mean).mean(Kind::Float).backward(); });
    }
    let p = Parameters::seeded(1, Device::Cpu);
    let te = TextEncoder::new(&p.root(), &t0);
    println!("text: {} params", p.count());
    let ids = Tensor::zeros([8, 77], (Kind::Int64, Device::Cpu));
    time(" text 8", || { tch::no_grad(|| te.forward(&ids)); });
    for (c, mult, groups, levels, heads) in [(64, vec![1, 2, 3], 32, vec![1, 2], 4), (48, vec![1,2,3], 16, vec![1,2], 4), (48, vec![1, 2, 2], 16, vec![1, 2], 4), (64, vec![1,2,2], 32, vec![1,2], 4)] {
        let u = UNetConfig { channels: c, channel_mult: mult.clone(), norm_groups: groups, attention_levels: levels.clone(), heads, ..u0.clone() };
        let p = Parameters::seeded(1, Device::Cpu);
        let un = UNet::new(&p.root().sub("unet"), &u);
        println!("unet {c} {mult:?} {levels:?}: {} params", p.count());
        let re = RetrievalBlock::new(&p.root(), &u);
        let x = Tensor::rand([16, 16, 16, 4], o).permute([0, 3, 1, 2]);
        let r = Tensor::rand([32, 16, 16, 4], o).permute([0, 3, 1, 2]);
        let t = Tensor::zeros([16], (Kind::Int64, Device::Cpu));
        let ctx = Tensor::rand([16, 77, 64], o);
        let words = Tensor::rand([32, 77, 64], o);
        time(" forward 16", || { tch::no_grad(|| un.forward(&x, &t, &ctx)); });
        let y = x.contiguous();
        time(" forward 16 nchw", || { tch::no_grad(|| un.forward(&y, &t, &ctx)); });
        let cond = Conditions { timesteps: t.shallow_clone(), context: ctx.shallow_clone(), references: Some(References { latents: r, words, each: 2 }) };
        for (n, t) in p.tensors() { if !(n.contains("input_blocks") && n.starts_with("unet") || n.contains("middle") || n.contains("time")) { let _ = t.set_requires_grad(true); } }
        time(" retrinet forward 16", || { tch::no_grad(|| predict(&un, Some(&re), &x, &cond)); });
        time(" retrinet train 16", || { predict(&un, Some(&re), &x, &cond).mean(Kind::Float).backward(); });
        for (n, t) in p.tensors() { if n.starts_with("unet") { let _ = t.set_requires_grad(true); } }
        time(" t2i train 16", || { un.forward(&x, &t, &ctx).mean(Kind::Float).backward(); });
    }
}
