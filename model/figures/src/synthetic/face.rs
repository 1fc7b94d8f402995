//! The face in head coordinates: skin, eyes, brows, mouth. Expressions affect only this module.

use super::canvas::{Canvas, Point};
use super::colour::{Colour, INK, WHITE};
use super::design::{Character, Detail, EyeShape};
use super::hair::both_sides;
use super::pose::Expression;

const EYE_Y: f64 = 11.0;
const BLUSH: Colour = Colour(246, 110, 110);
const LIP: Colour = Colour(134, 44, 54);
const MOUTH: Colour = Colour(190, 66, 80);

pub(super) fn draw(canvas: &mut Canvas, character: &Character, expression: Expression, yaw: f64) {
    let skin = character.skin.1;
    both_sides(canvas, |c| c.ball((42.0, 12.0), 6.0, 8.5, skin.shade(0.96)));
    let turn = yaw * 3.0;
    let line = canvas.artist().line;
    canvas.plain(
        &format!(
            "M-42 -14C-45 14 -38 28 {:.1} 39Q{:.1} 47 {:.1} 39C38 28 45 14 42 -14C40 -52 -40 -52 \
            -42 -14Z",
            -16.0 + turn,
            turn * 1.4,
            16.0 + turn
        ),
        skin,
        line,
    );
    // Shadow of the hair on the forehead.
    canvas.veil(
        "M-41 -16C-38 -2 38 -2 41 -16C40 -50 -40 -50 -41 -16Z",
        skin.shade(0.72),
        0.35,
    );
    cheeks(canvas, expression, yaw);
    for side in [-1.0, 1.0] {
        eye(canvas, character, expression, yaw, side);
    }
    nose_and_mouth(canvas, character, expression, yaw);
    detail(canvas, character, yaw);
}

fn cheeks(canvas: &mut Canvas, expression: Expression, yaw: f64) {
    let strong = if expression == Expression::Embarrassed {
        0.85
    } else {
        canvas.artist().blush
    };
    for side in [-1.0, 1.0] {
        let x = side * 28.0 + yaw * 7.0;
        canvas.put(format_args!(
            r#"<ellipse cx="{x:.1}" cy="28" rx="7.5" ry="4.2" fill="{}" fill-opacity="{strong}"/>"#,
            BLUSH.hex()
        ));
        if expression == Expression::Embarrassed {
            canvas.line(
                &format!("M{:.1} 31l3 -6M{:.1} 31l3 -6", x - 4.5, x + 0.5),
                LIP,
                1.2,
            );
        }
    }
}

fn eye(canvas: &mut Canvas, character: &Character, expression: Expression, yaw: f64, side: f64) {
    let near = 1.0 - 0.16 * (side * yaw).max(0.0);
    let at = (yaw * 8.0 + side * 20.0 * (1.0 - 0.06 * side * yaw), EYE_Y);
    let (w, h) = (11.6 * near, 15.0 * canvas.artist().eye_height);
    brow(canvas, character, expression, at, side, h);
    let slant = match character.eye_shape {
        EyeShape::Round => 0.0,
        EyeShape::Sharp => -7.0,
        EyeShape::Drooping => 7.0,
    } * side;
    canvas.group(&format!(
        "translate({:.1} {:.1}) rotate({slant})",
        at.0, at.1
    ));
    match expression {
        Expression::ClosedEyes => closed(canvas, w, -1.0),
        Expression::Wink if side > 0.0 => closed(canvas, w, -1.0),
        _ => {
            let open = match expression {
                Expression::Surprised => 1.12,
                Expression::Sad | Expression::Crying => 0.9,
                Expression::Angry => 0.86,
                Expression::Smug => 0.62,
                _ => 1.0,
            };
            let drop = if expression == Expression::Smug {
                4.0
            } else {
                0.0
            };
            let eye = OpenEye {
                half_width: w,
                half_height: h * open,
                side,
                yaw,
                drop,
            };
            open_eye(canvas, character, eye);
        }
    }
    if expression == Expression::Crying {
        canvas.veil(
            "M-5 12Q-9 22 -6 30Q0 34 5 28Q6 20 3 12Z",
            Colour(140, 205, 250),
            0.9,
        );
    }
    canvas.end();
}

/// An open eye, relative to its centre.
struct OpenEye {
    half_width: f64,
    half_height: f64,
    /// -1 on the left, 1 on the right.
    side: f64,
    yaw: f64,
    /// Vertical offset, downwards.
    drop: f64,
}

fn open_eye(canvas: &mut Canvas, character: &Character, eye: OpenEye) {
    let OpenEye {
        half_width: w,
        half_height: h,
        side,
        yaw,
        drop,
    } = eye;
    let iris = character.eyes.1;
    canvas.group(&format!("translate(0 {drop})"));
    canvas.ellipse((0.0, 0.0), w, h, WHITE);
    let look = yaw * 1.6;
    let fill = canvas.gradient(iris.shade(0.42), iris.shade(1.3));
    canvas.put(format_args!(
        r#"<ellipse cx="{look:.1}" cy="0.8" rx="{:.1}" ry="{:.1}" fill="{fill}"/>"#,
        w * 0.82,
        h * 0.92
    ));
    canvas.ellipse((look, 1.5), w * 0.36, h * 0.42, iris.shade(0.25));
    canvas.ellipse((look, h * 0.55), w * 0.42, h * 0.22, iris.shade(1.55));
    canvas.ellipse((look - w * 0.3, -h * 0.36), w * 0.32, h * 0.26, WHITE);
    canvas.ellipse((look + w * 0.34, h * 0.34), w * 0.15, h * 0.12, WHITE);
    let flick = if character.girl { 4.2 } else { 1.6 };
    canvas.group(&format!("scale({side} 1)"));
    canvas.flat(
        &format!(
            "M{:.1} {:.1}Q{:.1} {:.1} 0 {:.1}Q{:.1} {:.1} {:.1} {:.1}Q{:.1} {:.1} {:.1} \
            {:.1}Q{:.1} {:.1} 0 {:.1}Q{:.1} {:.1} {:.1} {:.1}Z",
            -w - 1.0,
            -h * 0.2,
            -w * 0.8,
            -h * 1.12,
            -h * 1.12,
            w * 0.9,
            -h * 1.14,
            w + 1.2,
            -h * 0.3,
            w + flick * 0.5,
            -h * 0.2,
            w + flick,
            -h * 0.36,
            w * 0.9,
            -h * 0.7,
            -h * 0.82,
            -w * 0.72,
            -h * 0.8,
            -w - 1.0,
            -h * 0.2
        ),
        INK,
    );
    canvas.line(
        &format!(
            "M{:.1} {:.1}Q{:.1} {:.1} {:.1} {:.1}",
            -w * 0.5,
            h * 0.98,
            w * 0.3,
            h * 1.1,
            w * 0.86,
            h * 0.6
        ),
        INK,
        1.4,
    );
    canvas.end();
    canvas.end();
}

fn closed(canvas: &mut Canvas, w: f64, bend: f64) {
    let d = format!("M{:.1} 4Q0 {:.1} {:.1} 4", -w, 4.0 + bend * 13.0, w);
    canvas.line(&d, INK, 3.2);
    canvas.line(&format!("M{:.1} 4l-3 2M{w:.1} 4l3 2", -w), INK, 2.0);
}

fn brow(
    canvas: &mut Canvas,
    character: &Character,
    expression: Expression,
    at: Point,
    side: f64,
    h: f64,
) {
    // The inner end is lower in anger and higher in sorrow.
    let (inner, raise) = match expression {
        Expression::Angry => (7.0, 0.0),
        Expression::Smug => (3.0, -1.0),
        Expression::Sad | Expression::Crying | Expression::Embarrassed => (-6.0, 0.0),
        Expression::Surprised => (0.0, -5.0),
        _ => (0.0, -1.0),
    };
    let y = at.1 - h - 5.5 + raise;
    let (x_in, x_out) = (at.0 - side * 8.0, at.0 + side * 10.0);
    let colour = character.hair.1.shade(0.55).mix(INK, 0.2);
    canvas.line(
        &format!(
            "M{x_in:.1} {:.1}Q{:.1} {:.1} {x_out:.1} {:.1}",
            y + inner,
            at.0,
            y - 3.0,
            y + 2.0 - inner * 0.3
        ),
        colour,
        2.6,
    );
}

fn nose_and_mouth(canvas: &mut Canvas, character: &Character, expression: Expression, yaw: f64) {
    let skin = character.skin.1;
    let x = yaw * 9.0;
    canvas.line(
        &format!("M{:.1} 23.5l{} 2.6", x, if yaw < 0.0 { -1.6 } else { 1.6 }),
        skin.shade(0.62),
        1.9,
    );
    canvas.group(&format!("translate({x:.1} 33)"));
    match expression {
        Expression::Smile => canvas.line("M-8 -2Q0 6 8 -2", LIP, 2.4),
        Expression::Wink => canvas.line("M-8 -2Q0 7 8 -3", LIP, 2.4),
        Expression::Grin | Expression::ClosedEyes => {
            open_mouth(canvas, "M-10 -4Q0 -1 10 -4Q8 9 0 9Q-8 9 -10 -4Z");
            canvas.flat(
                "M-5.5 5Q0 2 5.5 5Q3 8.4 0 8.4Q-3 8.4 -5.5 5Z",
                Colour(240, 140, 140),
            );
        }
        Expression::Neutral => canvas.line("M-5 0H5", LIP, 2.2),
        Expression::Sad => canvas.line("M-7 3Q0 -4 7 3", LIP, 2.3),
        Expression::Angry => canvas.line("M-8 3Q-2 -4 8 1", LIP, 2.6),
        Expression::Surprised => open_mouth(canvas, "M-5 1C-5 -6 5 -6 5 1C5 9 -5 9 -5 1Z"),
        Expression::Embarrassed => canvas.line("M-9 1Q-6 -4 -3 0Q0 4 3 0Q6 -4 9 1", LIP, 2.2),
        Expression::Tongue => {
            canvas.line("M-8 -2Q0 4 8 -2", LIP, 2.4);
            canvas.shape("M0 1Q8 0 7 6Q4 10 0 7Z", Colour(240, 120, 130));
        }
        Expression::Crying => open_mouth(canvas, "M-8 6Q-8 -5 0 -5Q8 -5 8 6Q0 2 -8 6Z"),
        Expression::Smug => canvas.line("M-8 -1Q-4 4 0 0Q4 4 8 -3", LIP, 2.2),
    }
    canvas.end();
}

fn open_mouth(canvas: &mut Canvas, d: &str) {
    canvas.flat(d, MOUTH);
    canvas.line(d, LIP, 1.6);
}

fn detail(canvas: &mut Canvas, character: &Character, yaw: f64) {
    let x = yaw * 8.0;
    match character.detail {
        Detail::None => {}
        Detail::Mole => canvas.ellipse((x + 25.0, 30.0), 1.8, 1.8, INK),
        Detail::Freckles => {
            for (dx, dy) in [
                (-31.0, 24.0),
                (-26.0, 27.0),
                (-22.0, 24.0),
                (22.0, 24.0),
                (26.0, 27.0),
                (31.0, 24.0),
            ] {
                canvas.ellipse((x + dx, dy), 1.3, 1.3, character.skin.1.shade(0.6));
            }
        }
        Detail::Bandage => {
            canvas.group(&format!("translate({:.1} 28) rotate(-18)", x - 27.0));
            canvas.plain("M-9 -4H9V4H-9Z", Colour(244, 206, 160), 1.3);
            canvas.flat("M-3 -4H3V4H-3Z", Colour(228, 176, 126));
            canvas.end();
        }
        Detail::FaceMark => {
            let colour = character.accessory_colour.1;
            for dx in [-28.0, 28.0] {
                canvas.flat(&format!("M{:.1} 20l3.4 7l-3.4 7l-3.4 -7Z", x + dx), colour);
            }
        }
    }
}
