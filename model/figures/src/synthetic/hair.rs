//! Hair in head coordinates: the origin is the centre of the head, the chin is at (0, 42), the
//! crown at (0, -56).

use super::canvas::Canvas;
use super::colour::Colour;
use super::design::{Back, Bangs, Character};

/// Hair behind body and face.
pub(super) fn back(canvas: &mut Canvas, character: &Character, yaw: f64) {
    let hair = character.hair.1;
    let dark = hair.shade(0.82);
    canvas.group(&format!("translate({:.1} 0)", -yaw * 3.0));
    match character.back {
        Back::Long => canvas.shape(
            "M-49 -12C-62 20 -60 70 -52 112Q-44 106 -38 116Q-28 106 -18 114Q-8 106 0 112Q8 106 18 \
            114\
                 Q28 106 38 116Q44 106 52 112C60 70 62 20 49 -12Z",
            dark,
        ),
        Back::Wavy => canvas.shape(
            "M-48 -14C-66 0 -54 18 -64 34C-74 50 -56 60 -66 78C-70 92 -56 98 -50 92\
                 C-40 108 -24 94 -16 100C-6 108 6 108 16 100C24 94 40 108 50 92C56 98 70 92 66 78\
                 C56 60 74 50 64 34C54 18 66 0 48 -14Z",
            dark,
        ),
        Back::Bob => canvas.shape(
            "M-49 -12C-60 14 -62 34 -52 50Q-44 56 -36 48Q0 58 36 48Q44 56 52 50C62 34 60 14 49 \
            -12Z",
            dark,
        ),
        Back::Short | Back::Buns => {
            canvas.shape(
                "M-47 -12C-52 10 -50 24 -40 34L-28 24L28 24L40 34C50 24 52 10 47 -12Z",
                dark,
            );
        }
        _ => {
            short_back(canvas, dark);
            tied(canvas, character.back, hair);
        }
    }
    if character.back == Back::Buns {
        both_sides(canvas, |c| {
            c.ball((37.0, -46.0), 19.0, 18.0, hair.shade(0.94));
            c.seam("M28 -52Q38 -60 48 -48M30 -42Q40 -50 50 -40", hair);
        });
    }
    canvas.end();
    // The crown covers the gap between hair and face, so that no background is visible there.
    canvas.shape(
        "M-48 0C-56 -34 -36 -57 0 -57C36 -57 56 -34 48 0Q40 30 0 30Q-40 30 -48 0Z",
        dark,
    );
}

/// Tied hair: tails, braids and drills. Draws nothing for loose hair.
fn tied(canvas: &mut Canvas, back: Back, hair: Colour) {
    match back {
        Back::Ponytail => {
            canvas.shape(
                "M10 -50C52 -78 86 -44 80 6C78 36 66 60 52 76C58 44 56 16 40 -8Q26 -26 10 -30Z",
                hair.shade(0.9),
            );
        }
        Back::SidePonytail => {
            canvas.shape(
                "M34 -28C70 -44 88 -10 82 28C80 56 70 74 58 84C64 60 62 40 56 28C54 8 46 -6 34 \
                -12Z",
                hair.shade(0.92),
            );
        }
        Back::Twintails => {
            both_sides(canvas, |c| {
                c.shape(
                    "M36 -32C66 -58 100 -30 94 20C92 56 84 84 70 104C72 84 66 74 66 56C66 30 58 2 \
                    36 -14Z",
                    hair.shade(0.93),
                );
                c.seam("M52 -22C78 -18 82 20 76 66", hair);
            });
        }
        Back::LowTwintails => {
            both_sides(canvas, |c| {
                c.shape(
                    "M36 24C56 18 70 40 66 68C64 86 56 98 46 106C48 92 44 84 44 70C42 54 40 40 34 \
                    36Z",
                    hair.shade(0.93),
                );
            });
        }
        Back::Braids => {
            both_sides(canvas, |c| {
                for (x, y) in [(46.0, 34.0), (51.0, 50.0), (53.0, 66.0), (51.0, 82.0)] {
                    c.ball((x, y), 11.0 - y / 20.0, 10.5, hair.shade(0.94));
                }
                c.shape("M46 90Q51 86 56 90L58 106Q51 112 46 105Z", hair.shade(0.94));
            });
        }
        Back::Drills => {
            both_sides(canvas, |c| {
                for (y, width) in [
                    (96.0, 8.0),
                    (78.0, 12.0),
                    (58.0, 15.5),
                    (36.0, 18.0),
                    (14.0, 17.0),
                ] {
                    c.ball((60.0 - (y - 40.0) * 0.08, y), width, 14.0, hair.shade(0.95));
                }
            });
        }
        Back::Long | Back::Wavy | Back::Bob | Back::Short | Back::Buns => {}
    }
}

fn short_back(canvas: &mut Canvas, dark: Colour) {
    canvas.shape(
        "M-48 -12C-54 10 -52 26 -42 36Q0 46 42 36C52 26 54 10 48 -12Z",
        dark,
    );
}

/// Hair in front of the face: bangs, sidelocks, highlight, and the ahoge unless there is a hat.
/// `yaw` shifts the tips.
pub(super) fn front(canvas: &mut Canvas, character: &Character, hat: bool, yaw: f64) {
    let hair = character.hair.1;
    if character.sidelocks {
        both_sides(canvas, |c| {
            c.shape("M34 -20C44 -8 38 20 43 50C52 34 55 4 47 -20Z", hair);
        });
    }
    if character.ahoge && !hat {
        canvas.shape("M-4 -54C-16 -74 -2 -88 18 -80C8 -80 0 -72 7 -54Z", hair);
    }
    let lower = match character.bangs {
        Bangs::Blunt => tufts(
            yaw,
            &[
                (38, -2, 33, -9),
                (22, -3, 15, -10),
                (4, -4, -3, -10),
                (-14, -3, -20, -10),
                (-34, -2, -40, -12),
            ],
        ),
        Bangs::Swept => tufts(
            yaw,
            &[
                (40, 2, 32, -20),
                (14, -6, 6, -14),
                (-16, 2, -22, -8),
                (-38, 10, -43, -8),
            ],
        ),
        Bangs::Parted => tufts(
            yaw,
            &[
                (44, 12, 34, -14),
                (22, -2, 2, -36),
                (-20, -2, -32, -14),
                (-44, 12, -45, -8),
            ],
        ),
        Bangs::Tufts => tufts(
            yaw,
            &[
                (40, 4, 32, -16),
                (22, -4, 12, -18),
                (-1, 12, -10, -18),
                (-22, -4, -32, -16),
                (-42, 4, -44, -10),
            ],
        ),
        Bangs::Spiky => tufts(
            yaw,
            &[
                (44, 8, 34, -14),
                (28, 4, 18, -16),
                (8, 6, -2, -18),
                (-14, 4, -24, -16),
                (-30, 6, -38, -14),
                (-46, 6, -46, -10),
            ],
        ),
        Bangs::Curved => tufts(
            yaw,
            &[(42, 8, 30, -22), (10, -20, 4, -26), (-34, 12, -44, -4)],
        ),
    };
    let crown = if character.bangs == Bangs::Spiky {
        "M-48 8L-57 -18L-50 -26L-56 -46L-36 -46L-30 -64L-10 -54L4 -70L16 -54L38 -62L40 -44L57 -40\
             L50 -22L58 -12L48 8"
    } else {
        "M-48 10C-60 -36 -34 -60 0 -60C34 -60 60 -36 48 10"
    };
    canvas.shape(&format!("{crown}{lower}Z"), hair);
    shine(canvas, hair);
}

/// The highlight around the crown.
fn shine(canvas: &mut Canvas, hair: Colour) {
    let light = hair.shade(if hair.luma() > 0.75 { 1.6 } else { 1.38 });
    canvas.veil(
        "M-36 -34Q-30 -44 -18 -46L-14 -38L-9 -48Q8 -52 20 -47L21 -39L26 -45Q33 -40 37 -32Q30 -36 \
        25 -35\
             L20 -31L15 -38Q4 -41 -8 -38L-14 -30L-20 -36Q-30 -37 -36 -34Z",
        light,
        0.75,
    );
}

/// The lower edge of the bangs, from right to left: each tip and the notch after it.
fn tufts(yaw: f64, list: &[(i32, i32, i32, i32)]) -> String {
    let (mut x, mut y) = (48.0, 10.0);
    let mut d = String::new();
    for (tip_x, tip_y, notch_x, notch_y) in list {
        let turn = |v: &i32| f64::from(*v) + yaw * 5.0;
        let (tip, notch) = (
            (turn(tip_x), f64::from(*tip_y)),
            (turn(notch_x), f64::from(*notch_y)),
        );
        // Curved strands: each side leaves its notch steeply and reaches the tip from above.
        d += &format!(
            "Q{:.1} {:.1} {:.1} {:.1}Q{:.1} {:.1} {:.1} {:.1}",
            x,
            (y + tip.1) / 2.0 - 4.0,
            tip.0,
            tip.1,
            (tip.0 + notch.0) / 2.0 - 3.0,
            tip.1 - 1.0,
            notch.0,
            notch.1
        );
        (x, y) = notch;
    }
    d
}

pub(super) fn both_sides(canvas: &mut Canvas, mut draw: impl FnMut(&mut Canvas)) {
    for side in [1, -1] {
        canvas.group(&format!("scale({side} 1)"));
        draw(canvas);
        canvas.end();
    }
}
