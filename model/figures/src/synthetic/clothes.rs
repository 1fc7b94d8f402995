//! Garments in body coordinates (see body.rs). The order of drawing is determined by scene.rs.

use super::body::{arm_joints, leg_joints, part};
use super::canvas::{Canvas, Point};
use super::colour::{Colour, WHITE};
use super::design::{Bottom, Legwear, Outfit, Shoes, Sleeves, Top};
use super::pose::{Arm, Pose};

const TORSO: &str = "M-20 2Q0 -5 20 2Q23 14 18 27L20 50Q0 57 -20 50L-18 27Q-23 14 -20 2Z";

/// Legwear and shoes of one leg, and the trouser leg.
pub(super) fn leg(canvas: &mut Canvas, outfit: &Outfit, pose: &Pose, index: usize, side: f64) {
    let joints = leg_joints(pose, index, side);
    let colour = outfit.leg_colour.1;
    match outfit.legwear {
        Legwear::None => {}
        Legwear::Socks => canvas.limb(part(joints, 0.72, 1.0), 13.4, colour),
        Legwear::Thighhighs => canvas.limb(part(joints, 0.3, 1.0), 13.6, colour),
        Legwear::Pantyhose => canvas.limb(joints, 13.4, colour),
        Legwear::Striped => {
            canvas.limb(part(joints, 0.3, 1.0), 13.6, colour);
            for stripe in [0.4, 0.55, 0.7, 0.85] {
                let [a, _, b] = part(joints, stripe, stripe + 0.06);
                let other = if colour.luma() > 0.6 {
                    outfit.accent.1
                } else {
                    WHITE
                };
                canvas.limb_band(a, b, 12.0, other);
            }
        }
    }
    shoe(canvas, outfit, joints, side);
    let trousers =
        outfit.top == Top::Overalls || (!outfit.one_piece() && outfit.bottom == Bottom::Pants);
    let cloth = if outfit.top == Top::Overalls {
        outfit.main.1
    } else {
        outfit.second.1
    };
    if trousers {
        canvas.limb(part(joints, 0.0, 0.92), 17.0, cloth);
    } else if !outfit.one_piece() && outfit.bottom == Bottom::Shorts {
        canvas.limb(part(joints, 0.0, 0.36), 18.0, cloth);
    }
}

fn shoe(canvas: &mut Canvas, outfit: &Outfit, joints: [Point; 3], side: f64) {
    let [_, knee, ankle] = joints;
    let colour = outfit.accent.1;
    if outfit.shoes == Shoes::Boots {
        canvas.limb(part(joints, 0.74, 1.0), 16.0, colour);
    }
    let angle = (knee.0 - ankle.0).atan2(ankle.1 - knee.1).to_degrees();
    canvas.group(&format!(
        "translate({:.1} {:.1}) rotate({angle:.1}) scale({side} 1)",
        ankle.0, ankle.1
    ));
    canvas.shape("M-7 -4H7Q15 0 14 8H-8Q-9 2 -7 -4Z", colour);
    if outfit.shoes == Shoes::Sneakers {
        canvas.flat("M-8 5H14.4V9H-8Z", WHITE);
    }
    canvas.end();
}

/// All garments between neck and knees except sleeves.
pub(super) fn body(canvas: &mut Canvas, outfit: &Outfit, spread: f64) {
    if outfit.one_piece() {
        return one_piece(canvas, outfit, spread);
    }
    if outfit.top == Top::Overalls {
        canvas.shape(TORSO, outfit.second.1);
        canvas.shape(
            "M-13 14H13L15 30L20 36L21 56L3 59L0 54L-3 59L-21 56L-20 36L-15 30Z",
            outfit.main.1,
        );
        canvas.line("M-11 15L-14 1M11 15L14 1", outfit.main.1.shade(0.8), 4.0);
        canvas.shape("M-7 20H7V29H-7Z", outfit.main.1.shade(1.15));
        return canvas.ellipse((0.0, 24.0), 2.4, 2.4, outfit.accent.1);
    }
    // Long tops cover the bottom; short ones are tucked in.
    if matches!(outfit.top, Top::Hoodie | Top::Sweater) {
        bottom(canvas, outfit, spread);
        top(canvas, outfit);
    } else {
        top(canvas, outfit);
        bottom(canvas, outfit, spread);
    }
    if outfit.top == Top::Blazer {
        blazer(canvas, outfit);
    }
}

fn bottom(canvas: &mut Canvas, outfit: &Outfit, spread: f64) {
    let colour = outfit.second.1;
    match outfit.bottom {
        Bottom::Pleated => {
            canvas.shape(&skirt(70.0, 33.0 + spread * 0.5), colour);
            for x in [-0.7, -0.36, 0.0, 0.36, 0.7] {
                canvas.seam(
                    &format!("M{:.1} 42L{:.1} 68", x * 20.0, x * (33.0 + spread * 0.5)),
                    colour,
                );
            }
            canvas.shape("M-18 34Q0 39 18 34L19 41Q0 46 -19 41Z", colour.shade(0.85));
        }
        Bottom::LongSkirt => {
            canvas.shape(&skirt(90.0, 35.0 + spread * 0.6), colour);
            canvas.seam("M-9 46Q-13 66 -15 88M10 46Q13 66 17 88", colour);
            canvas.shape("M-18 34Q0 39 18 34L19 41Q0 46 -19 41Z", outfit.accent.1);
        }
        Bottom::Shorts | Bottom::Pants => {
            canvas.shape("M-18 36Q0 41 18 36L21 57L3 60L0 55L-3 60L-21 57Z", colour);
            canvas.line("M-18 38Q0 43 18 38", outfit.accent.1, 4.0);
        }
    }
}

fn skirt(hem: f64, half: f64) -> String {
    format!(
        "M-17 36Q0 41 17 36Q26 48 {half:.1} {hem:.1}Q{:.1} {:.1} {:.1} {:.1}Q0 {:.1} {:.1} {:.1}\
             Q{:.1} {:.1} {:.1} {hem:.1}Q-26 48 -17 36Z",
        half * 0.66,
        hem + 7.0,
        half * 0.33,
        hem + 4.0,
        hem + 9.0,
        -half * 0.33,
        hem + 4.0,
        -half * 0.66,
        hem + 7.0,
        -half
    )
}

fn top(canvas: &mut Canvas, outfit: &Outfit) {
    let (main, second, accent) = (outfit.main.1, outfit.second.1, outfit.accent.1);
    match outfit.top {
        Top::Sailor => {
            canvas.shape(TORSO, main);
            canvas.shape("M-21 1L-4 -3L0 18L4 -3L21 1L20 16L0 30L-20 16Z", second);
            canvas.line("M-18 12L0 25L18 12", WHITE, 1.8);
            canvas.shape("M0 24L-12 36L-3 33L0 40L3 33L12 36Z", accent);
        }
        Top::Shirt => {
            canvas.shape(TORSO, main);
            canvas.shape(
                "M-10 -3L0 9L10 -3L14 5L4 15L0 9L-4 15L-14 5Z",
                main.shade(1.25),
            );
            canvas.shape("M0 9L-4 14L-5 34L0 40L5 34L4 14Z", accent);
        }
        Top::Hoodie => {
            canvas.shape(
                "M-22 2Q0 -5 22 2Q25 20 22 40L21 54Q0 60 -21 54L-22 40Q-25 20 -22 2Z",
                main,
            );
            canvas.shape(
                "M-19 1Q-12 20 0 21Q12 20 19 1Q0 -10 -19 1Z",
                main.shade(0.8),
            );
            canvas.line("M-5 18V34M5 18V34", accent, 2.4);
            canvas.shape("M-12 36H12L16 50H-16Z", main.shade(0.88));
        }
        Top::Tee => {
            canvas.shape(TORSO, main);
            if outfit.striped {
                stripes(canvas, second);
            } else {
                star(canvas, second);
            }
            canvas.line("M-9 -2Q0 7 9 -2", main.shade(0.7), 3.0);
        }
        Top::Sweater => {
            canvas.shape(
                "M-21 2Q0 -5 21 2Q24 16 20 30L21 53Q0 59 -21 53L-20 30Q-24 16 -21 2Z",
                main,
            );
            if outfit.striped {
                stripes(canvas, second);
            }
            canvas.shape("M-11 -10Q0 -6 11 -10L12 2Q0 8 -12 2Z", main.shade(0.9));
            canvas.line("M-20 50Q0 57 20 50", main.shade(0.72), 3.0);
        }
        Top::Blazer => canvas.shape(TORSO, WHITE),
        Top::Cape => {
            canvas.shape(TORSO, second);
            canvas.line("M0 4V46", second.shade(0.7), 2.0);
        }
        Top::Overalls | Top::Dress | Top::Kimono | Top::Maid | Top::Qipao => {}
    }
}

fn blazer(canvas: &mut Canvas, outfit: &Outfit) {
    let (main, accent) = (outfit.main.1, outfit.accent.1);
    canvas.shape("M0 6L-4 12L-4 30L0 35L4 30L4 12Z", accent);
    canvas.shape("M-20 1L-9 -3L-4 36L-8 54L-21 51L-19 28Q-24 14 -20 1Z", main);
    canvas.shape("M20 1L9 -3L4 36L8 54L21 51L19 28Q24 14 20 1Z", main);
    canvas.shape(
        "M-9 -3L-14 10L-10 14L-5 30M9 -3L14 10L10 14L5 30",
        main.shade(0.82),
    );
    canvas.ellipse((-8.0, 42.0), 1.8, 1.8, Colour(246, 208, 60));
    canvas.ellipse((8.0, 42.0), 1.8, 1.8, Colour(246, 208, 60));
}

fn one_piece(canvas: &mut Canvas, outfit: &Outfit, spread: f64) {
    let (main, second, accent) = (outfit.main.1, outfit.second.1, outfit.accent.1);
    match outfit.top {
        Top::Kimono => {
            canvas.shape("M-20 2Q0 -5 20 2L19 40L25 92Q0 98 -25 92L-19 40Z", main);
            canvas.seam("M4 44L-4 93", main);
            canvas.line("M-12 -2L6 24M12 -2L-3 18", second, 5.0);
            canvas.shape("M-20 27Q0 32 20 27L20 43Q0 48 -20 43Z", accent);
            canvas.line("M-20 36Q0 41 20 36", second, 3.0);
            for (x, y) in [(-12.0, 66.0), (10.0, 74.0), (-8.0, 84.0), (13.0, 56.0)] {
                flower(canvas, (x, y), second);
            }
        }
        Top::Qipao => {
            canvas.shape(
                &format!(
                    "M-19 1Q0 -6 19 1L16 28Q26 50 {:.1} 72Q0 84 {:.1} 72Q-26 50 -16 28Z",
                    24.0 + spread * 0.3,
                    -24.0 - spread * 0.3
                ),
                main,
            );
            canvas.shape("M-8 -9Q0 -5 8 -9L9 1Q0 6 -9 1Z", main.shade(0.85));
            canvas.line("M2 2Q14 6 17 16M-24 72Q0 82 24 72", second, 2.6);
            flower(canvas, (-8.0, 22.0), second);
            flower(canvas, (7.0, 54.0), second);
        }
        _ => {
            let hem = 74.0;
            canvas.shape(TORSO, main);
            canvas.shape(&skirt(hem, 35.0 + spread * 0.5), main);
            canvas.seam("M-8 46L-14 72M8 46L14 72", main);
            canvas.line(
                &format!(
                    "M-17 36Q0 41 17 36M{:.1} {hem:.1}Q0 {:.1} {:.1} {hem:.1}",
                    -33.0 - spread * 0.5,
                    hem + 12.0,
                    33.0 + spread * 0.5
                ),
                second,
                4.0,
            );
            if outfit.top == Top::Maid {
                canvas.shape(
                    "M-10 4L10 4L12 32Q24 44 25 66Q12 74 0 72Q-12 74 -25 66Q-24 44 -12 32Z",
                    WHITE,
                );
                canvas.line("M-13 34Q0 38 13 34", accent, 3.4);
            } else {
                canvas.flat("M-9 -2L0 11L9 -2L12 4L0 18L-12 4Z", second);
            }
            bow(canvas, (0.0, 9.0), accent);
        }
    }
}

/// Sleeves of one arm, over the bare arm.
pub(super) fn sleeve(canvas: &mut Canvas, outfit: &Outfit, arm: &Arm, side: f64) {
    let joints = arm_joints(arm, side);
    let colour = match outfit.top {
        Top::Overalls | Top::Cape => outfit.second.1,
        _ => outfit.main.1,
    };
    match outfit.sleeves {
        Sleeves::None => {}
        Sleeves::Long if outfit.top == Top::Kimono => wide(canvas, joints, colour, outfit.second.1),
        Sleeves::Long => {
            canvas.limb(part(joints, 0.0, 0.9), 15.0, colour);
            let [a, _, b] = part(joints, 0.86, 0.93);
            canvas.limb_band(a, b, 14.0, cuff(outfit));
        }
        Sleeves::Short => canvas.limb(part(joints, 0.0, 0.38), 16.0, colour),
        Sleeves::Puffy => {
            canvas.limb(part(joints, 0.0, 0.3), 13.0, colour);
            let [_, _, at] = part(joints, 0.0, 0.12);
            canvas.ball(at, 11.5, 10.5, colour);
            let [a, _, b] = part(joints, 0.3, 0.36);
            canvas.limb_band(a, b, 13.0, outfit.second.1);
        }
        Sleeves::Detached => {
            canvas.limb(part(joints, 0.4, 0.92), 15.5, colour);
            let [a, _, b] = part(joints, 0.38, 0.44);
            canvas.limb_band(a, b, 15.0, outfit.second.1);
        }
    }
}

fn cuff(outfit: &Outfit) -> Colour {
    match outfit.top {
        Top::Sailor => outfit.second.1,
        Top::Blazer => WHITE,
        Top::Hoodie | Top::Sweater => outfit.main.1.shade(0.75),
        _ => outfit.accent.1,
    }
}

/// A kimono sleeve: it hangs straight down from the forearm.
fn wide(canvas: &mut Canvas, joints: [Point; 3], colour: Colour, trim: Colour) {
    let [shoulder, _, hand] = part(joints, 0.0, 0.9);
    let [_, elbow, _] = joints;
    canvas.limb([shoulder, elbow, hand], 14.0, colour);
    let drop = 26.0;
    let d = format!(
        "M{:.1} {:.1}L{:.1} {:.1}L{:.1} {:.1}L{:.1} {:.1}Z",
        (shoulder.0 + elbow.0) / 2.0,
        (shoulder.1 + elbow.1) / 2.0,
        hand.0,
        hand.1 - 5.0,
        hand.0,
        hand.1 + drop * 0.8,
        elbow.0,
        elbow.1 + drop * 0.6
    );
    canvas.shape(&d, colour);
    canvas.line(
        &format!(
            "M{:.1} {:.1}V{:.1}",
            hand.0,
            hand.1 - 3.0,
            hand.1 + drop * 0.75
        ),
        trim,
        3.0,
    );
}

/// Garments in front of body and arms: scarf and cape collar.
pub(super) fn over(canvas: &mut Canvas, outfit: &Outfit) {
    if outfit.scarf {
        let colour = outfit.accent.1;
        canvas.shape("M9 4L20 34L10 38L4 8Z", colour.shade(0.9));
        canvas.shape(
            "M-17 -6Q0 -1 17 -6Q22 4 16 9Q0 14 -16 9Q-22 4 -17 -6Z",
            colour,
        );
    }
    if outfit.top == Top::Cape {
        let main = outfit.main.1;
        canvas.shape(
            "M-18 -5Q0 2 18 -5Q30 8 33 26Q16 32 6 16L0 12L-6 16Q-16 32 -33 26Q-30 8 -18 -5Z",
            main,
        );
        canvas.ball((0.0, 9.0), 4.2, 4.2, outfit.accent.1);
    }
}

/// Garments behind the body: the cape.
pub(super) fn behind(canvas: &mut Canvas, outfit: &Outfit) {
    if outfit.top == Top::Cape {
        canvas.shape(
            "M-19 0H19C30 30 40 60 44 84Q22 94 0 88Q-22 94 -44 84C-40 60 -30 30 -19 0Z",
            outfit.main.1.shade(0.85),
        );
    }
}

pub(super) fn bow(canvas: &mut Canvas, (x, y): Point, colour: Colour) {
    canvas.shape(
        &format!(
            "M{x} {y}L{} {}Q{} {y} {} {}ZM{x} {y}L{} {}Q{} {y} {} {}Z",
            x - 13.0,
            y - 8.0,
            x - 16.0,
            x - 13.0,
            y + 8.0,
            x + 13.0,
            y - 8.0,
            x + 16.0,
            x + 13.0,
            y + 8.0
        ),
        colour,
    );
    canvas.ball((x, y), 3.8, 4.2, colour.shade(0.88));
}

pub(super) fn flower(canvas: &mut Canvas, (x, y): Point, colour: Colour) {
    for i in 0..5 {
        let angle = f64::from(i) * 1.2566;
        canvas.ellipse(
            (x + 3.4 * angle.sin(), y - 3.4 * angle.cos()),
            2.6,
            2.6,
            colour,
        );
    }
    canvas.ellipse((x, y), 1.8, 1.8, Colour(250, 214, 80));
}

fn stripes(canvas: &mut Canvas, colour: Colour) {
    for y in [14.0, 24.0, 34.0, 44.0] {
        canvas.line(&format!("M-17 {y}Q0 {} 17 {y}", y + 4.0), colour, 4.6);
    }
}

fn star(canvas: &mut Canvas, colour: Colour) {
    canvas.flat(
        "M0 12L3.6 20.4L12.6 21L5.8 27L8 36L0 31L-8 36L-5.8 27L-12.6 21L-3.6 20.4Z",
        colour,
    );
}
