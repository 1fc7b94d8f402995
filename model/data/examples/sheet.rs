#![allow(clippy::unwrap_used)]
use model_data::figure::*;
use model_data::grid::*;
use proto::spec::*;
#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let mode = args.next().unwrap();
    let out = args.next().unwrap();
    let rest: Vec<String> = args.collect();
    if mode == "import" {
        let t = std::time::Instant::now();
        let r = model_data::import::import(rest[0].as_ref(), &rest[1], "wesnoth", false).await;
        match r {
            Ok((m, r)) => {
                println!(
                    "{} {:?} guessed {} rejected {:?}",
                    m.samples,
                    t.elapsed(),
                    r.guessed_boxes,
                    &r.rejected[..r.rejected.len().min(5)]
                );
            }
            Err(e) => println!("{e}"),
        }
        let d = model_data::dataset::Dataset::open(&rest[1]).await.unwrap();
        println!("{:?}", model_data::describe::describe(&d).await.unwrap());
        println!(
            "{:?}",
            model_data::verify::verify(&d).await.unwrap().findings.len()
        );
    }
    if mode == "sheet" {
        let a: Vec<u32> = rest.iter().map(|x| x.parse().unwrap()).collect();
        let o = SynthesizeOptions {
            characters: a[0],
            outfits: a[1],
            images: a[2],
            size: a[3],
            seed: a[4].into(),
            similar: Similar::All,
        };
        let t = std::time::Instant::now();
        let v: Vec<_> = synthesize(&o).collect();
        println!("{:.2} ms each", t.elapsed().as_secs_f64() * 1e3 / v.len() as f64);
        let rows: Vec<Vec<Cell>> = v
            .chunks(a[2] as usize)
            .map(|c| {
                c.iter()
                    .map(|s| {
                        let d = model_data::picture::decode(s, 0).unwrap();
                        let mut p = d.picture.clone();
                        if a.len() > 5 {
                            p = image::DynamicImage::ImageLuma8(d.mask.clone()).into_rgb8();
                        }
                        let f = d.face(1.0);
                        if a.len() > 5 {
                            for x in f.x..f.x + f.width {
                                p.put_pixel(x, f.y, image::Rgb([255, 0, 0]));
                                p.put_pixel(x, f.bottom() - 1, image::Rgb([255, 0, 0]));
                            }
                            for y in f.y..f.bottom() {
                                p.put_pixel(f.x, y, image::Rgb([255, 0, 0]));
                                p.put_pixel(f.x + f.width - 1, y, image::Rgb([255, 0, 0]));
                            }
                        }
                        Cell::new(d.metadata.id, p)
                    })
                    .collect()
            })
            .collect();
        picture_grid(&rows, a[3], 1).save(&out).unwrap();
        for s in v.iter().take(2) {
            println!("{}", s.metadata.prompts);
        }
    }
    if mode == "examples" {
        let data = Data {
            dataset: rest[0].clone(),
            task: Task::Composition,
            pairing: Pairing::B,
            references: 4,
            resolution: 128,
            prompt_drop: 0.5,
            face_probability: 0.5,
            face_enlargement: 1.33,
            figure_threshold: 0.5,
            multitask_reconstruction: 0.5,
            holdout: 0.1,
            seed: 7,
        };
        let l = model_data::loader::Loader::open(
            &data,
            model_data::loader::LoaderOptions {
                needs_references: true,
                cache_bytes: 256 << 20,
                version: None,
            },
        )
        .await
        .unwrap();
        let rows: Vec<Vec<Cell>> = l
            .examples(1, 16, 0..16)
            .await
            .unwrap()
            .into_iter()
            .map(|e| {
                let mut r = vec![
                    Cell::new("target", e.target.clone()),
                    Cell::new(
                        "mask",
                        image::DynamicImage::ImageLuma8(e.target_mask.clone()).into_rgb8(),
                    ),
                    Cell::new(
                        "face mask",
                        image::DynamicImage::ImageLuma8(e.face_mask.clone()).into_rgb8(),
                    ),
                ];
                r.extend(
                    e.references
                        .into_iter()
                        .map(|x| Cell::new(x.concept.word(), x.picture)),
                );
                r
            })
            .collect();
        picture_grid(&rows, 96, 2).save(&out).unwrap();
        let data = Data {
            references: 2,
            resolution: 64,
            ..data
        };
        let l = model_data::loader::Loader::open(
            &data,
            model_data::loader::LoaderOptions {
                needs_references: true,
                cache_bytes: 512 << 20,
                version: None,
            },
        )
        .await
        .unwrap();
        for round in 0..4 {
            let t = std::time::Instant::now();
            let n = l.examples(round / 2 * 3 + 1, 512, 0..512).await.unwrap().len();
            println!("{:.0} examples/s", n as f64 / t.elapsed().as_secs_f64());
        }
        let pts: Vec<(u64, f64)> = (0..300)
            .map(|i| {
                (
                    i * 10,
                    0.1 + 0.9 / (1.0 + i as f64 / 15.0) + 0.1 * ((i * 7919) % 100) as f64 / 100.0,
                )
            })
            .collect();
        model_data::curve::loss_curve(&pts, "demo-1 loss", 720, 400)
            .save("/tmp/w/curve.png")
            .unwrap();
    }
    if mode == "make" {
        let a: Vec<u32> = rest[1..].iter().map(|x| x.parse().unwrap()).collect();
        let o = SynthesizeOptions {
            characters: a[0],
            outfits: a[1],
            images: a[2],
            size: a[3],
            seed: a[4].into(),
            similar: Similar::All,
        };
        let mut w = model_data::writer::DatasetWriter::open(
            &rest[0],
            model_data::writer::WriteOptions::new(o.source()),
        )
        .unwrap();
        let t = std::time::Instant::now();
        for g in identities(&o) {
            w.add(g).await.unwrap();
        }
        let m = w.finish().await.unwrap();
        println!("{} in {:?}", m.samples, t.elapsed());
    }
}
