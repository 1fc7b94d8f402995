//! Items on the head, in head coordinates: accessories of the character and hats of the outfit.

use super::canvas::Canvas;
use super::clothes::{bow, flower};
use super::colour::{Colour, INK, WHITE};
use super::design::{Accessory, Character, Hat, Outfit};
use super::hair::both_sides;

const GOLD: Colour = Colour(244, 196, 54);

/// Parts that are visible behind the hair.
pub(super) fn behind(canvas: &mut Canvas, character: &Character) {
    let hair = character.hair.1;
    match character.accessory {
        Accessory::CatEars => both_sides(canvas, |c| {
            c.shape("M14 -50Q34 -84 46 -80Q54 -60 47 -26Z", hair);
            c.flat(
                "M26 -54Q36 -70 42 -70Q46 -58 43 -42Z",
                Colour(248, 176, 186),
            );
        }),
        Accessory::Horns => both_sides(canvas, |c| {
            c.shape(
                "M22 -48Q34 -62 32 -82Q52 -70 42 -40Z",
                character.accessory_colour.1.shade(0.9),
            );
        }),
        _ => {}
    }
}

/// Parts on top of the hair and face.
pub(super) fn on_head(canvas: &mut Canvas, character: &Character, yaw: f64) {
    let colour = character.accessory_colour.1;
    let x = yaw * 8.0;
    match character.accessory {
        Accessory::Clip => {
            canvas.shape("M20 -22L38 -30L40 -24L22 -16Z", colour);
            canvas.shape("M18 -14L36 -20L38 -14L20 -8Z", colour);
        }
        Accessory::Bow => {
            canvas.group("translate(30 -46) rotate(22) scale(1.45)");
            bow(canvas, (0.0, 0.0), colour);
            canvas.end();
        }
        Accessory::Ribbon => both_sides(canvas, |c| {
            c.group("translate(46 -24) rotate(60) scale(0.95)");
            c.shape("M0 2L-5 24L0 21L4 25Z", colour.shade(0.9));
            bow(c, (0.0, 0.0), colour);
            c.end();
        }),
        Accessory::Hairband => canvas.line("M-47 -20C-40 -62 40 -62 47 -20", colour, 7.0),
        Accessory::Flower => {
            canvas.group("translate(-32 -36) scale(3.1)");
            canvas.ellipse((0.0, 0.0), 5.6, 5.6, colour.shade(0.75));
            flower(canvas, (0.0, 0.0), colour);
            canvas.end();
        }
        Accessory::Headphones => {
            canvas.line("M-50 4C-58 -74 58 -74 50 4", colour, 6.0);
            both_sides(canvas, |c| c.ball((49.0, 10.0), 10.0, 15.0, colour));
        }
        Accessory::Glasses => {
            for side in [-20.0, 20.0] {
                canvas.ring((x + side, 12.0), 15.5, 14.0, colour.mix(INK, 0.25), 2.8);
            }
            canvas.line(
                &format!("M{:.1} 10Q{x:.1} 6 {:.1} 10", x - 5.0, x + 5.0),
                colour.mix(INK, 0.25),
                2.6,
            );
        }
        Accessory::Eyepatch => {
            canvas.line(&format!("M-44 -10L{:.1} 8L44 22", x - 12.0), INK, 2.4);
            canvas.shape(
                &format!(
                    "M{:.1} -2H{:.1}V16Q{:.1} 30 {:.1} 16Z",
                    x - 33.0,
                    x - 7.0,
                    x - 20.0,
                    x - 33.0
                ),
                WHITE,
            );
        }
        Accessory::None | Accessory::CatEars | Accessory::Horns => {}
    }
}

pub(super) fn hat(canvas: &mut Canvas, outfit: &Outfit) {
    let Some(hat) = outfit.hat else { return };
    let (colour, trim) = (outfit.second.1, outfit.accent.1);
    canvas.group("translate(0 -5)");
    match hat {
        Hat::Witch => {
            canvas.shape(
                "M-30 -42C-22 -70 -10 -92 22 -104C16 -90 24 -66 32 -42Z",
                colour,
            );
            canvas.shape(
                "M-70 -30Q-36 -52 0 -52Q36 -52 70 -30Q36 -22 0 -24Q-36 -22 -70 -30Z",
                colour,
            );
            canvas.shape("M-31 -50Q0 -58 31 -50L33 -40Q0 -48 -33 -40Z", trim);
        }
        Hat::Beret => {
            canvas.shape(
                "M-46 -34C-62 -62 -20 -78 14 -70C52 -64 60 -40 44 -32Q0 -46 -46 -34Z",
                colour,
            );
            canvas.shape("M-46 -34Q0 -48 44 -32L43 -26Q0 -40 -45 -28Z", trim);
        }
        Hat::Cap => {
            canvas.shape("M-46 -28C-48 -76 48 -76 46 -28Q0 -40 -46 -28Z", colour);
            canvas.shape("M-42 -32Q-6 -44 40 -32Q64 -24 62 -14Q20 -28 -30 -24Z", trim);
            canvas.ball((0.0, -64.0), 3.6, 3.0, trim);
        }
        Hat::Straw => {
            let straw = Colour(240, 208, 130);
            canvas.shape("M-36 -34C-36 -76 36 -76 36 -34Z", straw);
            canvas.shape(
                "M-74 -28Q-40 -46 0 -46Q40 -46 74 -28Q40 -16 0 -20Q-40 -16 -74 -28Z",
                straw,
            );
            canvas.shape("M-36 -44Q0 -54 36 -44L37 -34Q0 -44 -37 -34Z", trim);
        }
        Hat::Crown => {
            canvas.shape(
                "M-26 -46L-30 -76L-14 -62L0 -82L14 -62L30 -76L26 -46Q0 -54 -26 -46Z",
                GOLD,
            );
            canvas.ball((0.0, -58.0), 4.0, 4.4, trim);
        }
    }
    canvas.end();
}
