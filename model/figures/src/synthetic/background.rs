//! The background of an image, drawn separately from the figure so that the figure's alpha is its
//! mask. The colours are pale, so that figure and background can be separated. Coordinates are
//! those of the view box: (0, 0) to (100, 100).

use std::fmt::Write;

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::Backgrounds;
use super::colour::{Colour, WHITE};
use super::pose::Framing;

/// SVG of the background, and its tags.
pub(super) fn draw(
    size: u32,
    framing: Framing,
    backgrounds: Backgrounds,
    rng: &mut ChaCha8Rng,
) -> (String, Vec<&'static str>) {
    let mut scene = Scene { svg: String::new() };
    let kind = match backgrounds {
        Backgrounds::All => rng.random_range(0..18),
        Backgrounds::Plain => rng.random_range(0..6),
    };
    let tags = match kind {
        0..=5 => simple(&mut scene, kind, rng),
        6 | 7 => gradient(&mut scene, rng),
        8 => stripes(&mut scene, rng),
        9 => dots(&mut scene, rng),
        10 | 11 => meadow(&mut scene, rng),
        12 => sunset(&mut scene, rng),
        13 => night(&mut scene, rng),
        14 => beach(&mut scene, rng),
        15 => blossoms(&mut scene, rng),
        16 => classroom(&mut scene),
        _ => room(&mut scene, rng),
    };
    if framing == Framing::FullBody {
        scene.put(
            r##"<ellipse cx="50" cy="92.5" rx="19" ry="2.6" fill="#30304a" fill-opacity="0.18"/>"##,
        );
    }
    let svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{size}" viewBox="0 0 100 100">{}</svg>"#,
        scene.svg
    );
    (svg, tags)
}

struct Scene {
    svg: String,
}

impl Scene {
    fn put(&mut self, svg: &str) {
        self.svg.push_str(svg);
    }

    fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, colour: Colour) {
        let _ = write!(
            self.svg,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{}"/>"#,
            colour.hex()
        );
    }

    fn circle(&mut self, x: f64, y: f64, r: f64, colour: Colour) {
        let _ = write!(
            self.svg,
            r#"<circle cx="{x:.1}" cy="{y:.1}" r="{r:.1}" fill="{}"/>"#,
            colour.hex()
        );
    }

    fn path(&mut self, d: &str, colour: Colour) {
        let _ = write!(self.svg, r#"<path d="{d}" fill="{}"/>"#, colour.hex());
    }

    /// Fills the background with a vertical gradient.
    fn sky(&mut self, top: Colour, bottom: Colour) {
        let _ = write!(
            self.svg,
            r#"<defs><linearGradient id="s" x1="0" y1="0" x2="0" y2="1"><stop
                offset="0" stop-color="{}"/><stop
                offset="1" stop-color="{}"/></linearGradient></defs><rect
                width="100" height="100" fill="url(#s)"/>"#,
            top.hex(),
            bottom.hex()
        );
    }

    fn cloud(&mut self, x: f64, y: f64, scale: f64) {
        for (dx, dy, r) in [
            (-7.0, 0.0, 4.0),
            (0.0, -2.5, 6.0),
            (7.0, 0.0, 4.5),
            (0.0, 1.0, 5.0),
        ] {
            self.circle(x + dx * scale, y + dy * scale, r * scale, WHITE);
        }
    }
}

/// A pale colour: any hue, low saturation.
fn pale(rng: &mut ChaCha8Rng) -> Colour {
    let one = |rng: &mut ChaCha8Rng| rng.random_range(176..=244);
    Colour(one(rng), one(rng), one(rng))
}

fn simple(scene: &mut Scene, kind: i32, rng: &mut ChaCha8Rng) -> Vec<&'static str> {
    let plain: [(&str, Colour); 7] = [
        ("grey_background", Colour(206, 208, 214)),
        ("blue_background", Colour(190, 216, 244)),
        ("pink_background", Colour(250, 212, 224)),
        ("green_background", Colour(202, 234, 206)),
        ("yellow_background", Colour(252, 240, 196)),
        ("purple_background", Colour(222, 208, 244)),
        ("beige_background", Colour(240, 228, 212)),
    ];
    let (tag, colour) = match kind {
        0..=2 => ("white_background", WHITE),
        3 => plain[0],
        _ => *plain.choose(rng).expect("there are colours"),
    };
    scene.rect(0.0, 0.0, 100.0, 100.0, colour);
    vec!["simple_background", tag]
}

fn gradient(scene: &mut Scene, rng: &mut ChaCha8Rng) -> Vec<&'static str> {
    let (a, b) = (pale(rng), pale(rng));
    scene.sky(a, b);
    vec!["gradient_background"]
}

fn stripes(scene: &mut Scene, rng: &mut ChaCha8Rng) -> Vec<&'static str> {
    let a = pale(rng);
    scene.rect(0.0, 0.0, 100.0, 100.0, a);
    let slant = rng.random_range(-30.0..30.0);
    let _ = write!(scene.svg, r#"<g transform="rotate({slant:.0} 50 50)">"#);
    for i in 0..12 {
        scene.rect(f64::from(i) * 14.0 - 34.0, -40.0, 7.0, 180.0, a.shade(1.4));
    }
    scene.put("</g>");
    vec!["striped_background"]
}

fn dots(scene: &mut Scene, rng: &mut ChaCha8Rng) -> Vec<&'static str> {
    let a = pale(rng);
    scene.rect(0.0, 0.0, 100.0, 100.0, a);
    for row in 0..9 {
        for column in 0..9 {
            let shift = if row % 2 == 0 { 0.0 } else { 6.0 };
            scene.circle(
                f64::from(column) * 12.0 + shift,
                f64::from(row) * 12.0 + 2.0,
                2.6,
                a.shade(1.5),
            );
        }
    }
    vec!["polka_dot_background"]
}

fn meadow(scene: &mut Scene, rng: &mut ChaCha8Rng) -> Vec<&'static str> {
    scene.sky(Colour(150, 206, 248), Colour(222, 242, 254));
    scene.cloud(
        rng.random_range(10.0..30.0),
        rng.random_range(12.0..26.0),
        1.0,
    );
    scene.cloud(
        rng.random_range(68.0..92.0),
        rng.random_range(16.0..34.0),
        0.8,
    );
    scene.path(
        "M0 76Q26 66 52 76Q78 84 100 72V100H0Z",
        Colour(178, 222, 150),
    );
    scene.path("M0 84Q40 76 100 86V100H0Z", Colour(150, 206, 126));
    for _ in 0..8 {
        let (x, y) = (rng.random_range(2.0..98.0), rng.random_range(88.0..98.0));
        scene.circle(x, y, 1.2, Colour(252, 236, 150));
    }
    vec!["outdoors", "sky", "cloud", "grass"]
}

fn sunset(scene: &mut Scene, rng: &mut ChaCha8Rng) -> Vec<&'static str> {
    scene.sky(Colour(250, 196, 150), Colour(252, 222, 196));
    scene.circle(
        rng.random_range(16.0..84.0),
        52.0,
        12.0,
        Colour(255, 244, 206),
    );
    scene.path(
        "M0 72L14 58L26 70L44 54L62 72L80 60L100 74V100H0Z",
        Colour(206, 158, 170),
    );
    scene.path("M0 84Q50 76 100 84V100H0Z", Colour(178, 134, 152));
    vec!["outdoors", "sky", "sunset", "mountain"]
}

fn night(scene: &mut Scene, rng: &mut ChaCha8Rng) -> Vec<&'static str> {
    scene.sky(Colour(84, 92, 150), Colour(150, 154, 204));
    for _ in 0..22 {
        let (x, y) = (rng.random_range(0.0..100.0), rng.random_range(0.0..66.0));
        scene.circle(x, y, 0.7, Colour(255, 250, 214));
    }
    let x = rng.random_range(10.0..90.0);
    scene.circle(x, 18.0, 8.0, Colour(255, 244, 196));
    scene.circle(x + 3.4, 16.0, 6.6, Colour(96, 104, 162));
    scene.path("M0 86Q40 78 100 88V100H0Z", Colour(92, 104, 140));
    vec!["outdoors", "night_sky", "star_(sky)", "moon"]
}

fn beach(scene: &mut Scene, rng: &mut ChaCha8Rng) -> Vec<&'static str> {
    scene.sky(Colour(166, 218, 250), Colour(232, 246, 254));
    scene.cloud(rng.random_range(10.0..90.0), 16.0, 0.9);
    scene.rect(0.0, 56.0, 100.0, 24.0, Colour(122, 198, 222));
    scene.path(
        "M0 62Q12 60 25 62T50 62T75 62T100 62V64H0Z",
        Colour(196, 232, 242),
    );
    scene.path("M0 78Q50 72 100 80V100H0Z", Colour(246, 228, 186));
    vec!["outdoors", "beach", "ocean", "sky"]
}

fn blossoms(scene: &mut Scene, rng: &mut ChaCha8Rng) -> Vec<&'static str> {
    scene.sky(Colour(206, 230, 250), Colour(250, 238, 244));
    scene.path(
        "M6 100L10 40L4 20L12 34L18 18L15 42L17 100Z",
        Colour(172, 136, 126),
    );
    for _ in 0..16 {
        let (x, y) = (rng.random_range(-6.0..46.0), rng.random_range(0.0..30.0));
        scene.circle(x, y, rng.random_range(4.0..8.0), Colour(250, 204, 218));
    }
    scene.rect(0.0, 88.0, 100.0, 12.0, Colour(190, 220, 166));
    for _ in 0..10 {
        let (x, y) = (rng.random_range(0.0..100.0), rng.random_range(20.0..98.0));
        scene.circle(x, y, 1.1, Colour(248, 180, 204));
    }
    vec!["outdoors", "cherry_blossoms", "tree"]
}

fn classroom(scene: &mut Scene) -> Vec<&'static str> {
    scene.rect(0.0, 0.0, 100.0, 82.0, Colour(244, 236, 218));
    scene.rect(8.0, 14.0, 84.0, 40.0, Colour(176, 140, 106));
    scene.rect(10.5, 16.5, 79.0, 35.0, Colour(108, 150, 128));
    scene.put(r##"<path d="M16 26h18M16 32h26M62 24h16" stroke="#e4efe6" stroke-width="1.4"/>"##);
    scene.rect(0.0, 82.0, 100.0, 18.0, Colour(218, 190, 152));
    vec!["indoors", "classroom", "chalkboard"]
}

fn room(scene: &mut Scene, rng: &mut ChaCha8Rng) -> Vec<&'static str> {
    let wall = pale(rng);
    scene.rect(0.0, 0.0, 100.0, 80.0, wall);
    scene.rect(0.0, 80.0, 100.0, 20.0, wall.shade(0.84));
    scene.rect(0.0, 79.0, 100.0, 2.0, wall.shade(1.5));
    let x = if rng.random_bool(0.5) { 6.0 } else { 62.0 };
    scene.rect(x, 12.0, 32.0, 36.0, WHITE);
    scene.rect(x + 2.5, 14.5, 12.5, 31.0, Colour(186, 222, 248));
    scene.rect(x + 17.0, 14.5, 12.5, 31.0, Colour(186, 222, 248));
    let shelf = 72.0 - x;
    scene.rect(shelf, 46.0, 24.0, 34.0, Colour(196, 162, 124));
    for (row, y) in [50.0, 64.0].into_iter().enumerate() {
        for i in 0..4 {
            let book = [
                Colour(220, 150, 140),
                Colour(150, 180, 210),
                Colour(226, 206, 140),
            ][(i + row) % 3];
            scene.rect(shelf + 2.5 + i as f64 * 5.0, y, 4.0, 11.0, book);
        }
    }
    vec!["indoors", "window", "bookshelf"]
}

#[cfg(test)]
mod tests {
    use super::*;
    use model_data::tags::is_background_tag;
    use rand::SeedableRng;

    #[test]
    fn the_tags_of_all_backgrounds_are_background_tags() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..300 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let (_, tags) = draw(16, Framing::FullBody, Backgrounds::All, &mut rng);
            for tag in tags {
                assert!(is_background_tag(tag), "{tag}");
                seen.insert(tag);
            }
        }
        assert!(seen.len() > 20, "{seen:?}");
    }

    #[test]
    fn plain_backgrounds_are_one_colour_and_half_of_them_white() {
        let mut white = 0;
        for seed in 0..300 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let (_, tags) = draw(16, Framing::Portrait, Backgrounds::Plain, &mut rng);
            assert_eq!((tags.len(), tags[0]), (2, "simple_background"), "{tags:?}");
            white += u32::from(tags[1] == "white_background");
        }
        assert!((120..=180).contains(&white), "{white} of 300");
    }
}
