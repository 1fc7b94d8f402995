use model_data::figure::*;
fn main() {
    let a: Vec<u32> = std::env::args().skip(2).map(|x| x.parse().unwrap()).collect();
    let out = std::env::args().nth(1).unwrap();
    let (ch, of, im, size, seed) = (a[0], a[1], a[2], a[3], a[4]);
    let o = SynthesizeOptions { characters: ch, outfits: of, images: im, size, seed: seed.into(), similar: Similar::All };
    let t = std::time::Instant::now();
    let v: Vec<_> = synthesize(&o).collect();
    println!("{:.2} ms each", t.elapsed().as_secs_f64() * 1e3 / v.len() as f64);
    let mut sheet = image::RgbImage::new(size * im, size * ch * of);
    let mask = a.len() > 5;
    for (i, s) in v.iter().enumerate() {
        if i < 3 { println!("{}", s.metadata.prompts); }
        let d = model_data::picture::decode(s, i as u64).unwrap();
        let mut p = d.picture.clone();
        if mask { p = image::DynamicImage::ImageLuma8(d.mask.clone()).into_rgb8(); }
        if mask {
        let f = d.face(1.0);
        for x in f.x..f.x + f.width { p.put_pixel(x, f.y, image::Rgb([255, 0, 0])); p.put_pixel(x, f.bottom() - 1, image::Rgb([255, 0, 0])); }
        for y in f.y..f.bottom() { p.put_pixel(f.x, y, image::Rgb([255, 0, 0])); p.put_pixel(f.x + f.width - 1, y, image::Rgb([255, 0, 0])); }
        }
        image::imageops::replace(&mut sheet, &p, (i as u32 % im * size).into(), (i as u32 / im * size).into());
    }
    sheet.save(out).unwrap();
}
