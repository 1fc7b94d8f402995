//! Composes the parts from back to front, and computes the face box. Called by mod.rs.

use super::canvas::{Canvas, Point};
use super::design::{Artist, Character, Outfit};
use super::pose::{Layer, Shot};
use super::{accessory, body, clothes, face, hair};

/// Position of the shoulders of a standing figure, in units of a 256-unit image.
const SHOULDERS: Point = (128.0, 137.0);
/// Offset of the head's centre above the shoulders.
const HEAD: f64 = -51.0;
/// The head rotates about the chin.
const NECK: f64 = 40.0;
/// The body rotates about the soles.
const SOLES: f64 = 104.0;
/// The box that a face detector would mark, in head coordinates: forehead to chin, cheek to cheek.
const FACE: [Point; 2] = [(-38.0, -24.0), (38.0, 44.0)];

/// SVG of the figure on a transparent background.
pub(super) fn figure(
    artist: Artist,
    character: &Character,
    outfit: &Outfit,
    shot: &Shot,
    size: u32,
) -> String {
    let mut canvas = Canvas::new(artist);
    canvas.group(&transform(shot));
    let head = format!("translate(0 {HEAD}) rotate({:.1} 0 {NECK})", shot.tilt);
    canvas.group(&head);
    accessory::behind(&mut canvas, character);
    hair::back(&mut canvas, character, shot.yaw);
    canvas.end();
    clothes::behind(&mut canvas, outfit);
    arms(&mut canvas, character, outfit, shot, Layer::Behind);
    for (index, side) in [(0, -1.0), (1, 1.0)] {
        body::leg(
            &mut canvas,
            body::leg_joints(&shot.pose, index, side),
            character.skin.1,
        );
        clothes::leg(&mut canvas, outfit, &shot.pose, index, side);
    }
    body::neck_and_torso(&mut canvas, character.skin);
    clothes::body(&mut canvas, outfit, leg_spread(shot));
    arms(&mut canvas, character, outfit, shot, Layer::Body);
    clothes::over(&mut canvas, outfit);
    canvas.group(&head);
    face::draw(&mut canvas, character, shot.expression, shot.yaw);
    hair::front(&mut canvas, character, outfit.hat.is_some(), shot.yaw);
    accessory::on_head(&mut canvas, character, shot.yaw);
    accessory::hat(&mut canvas, outfit);
    canvas.end();
    arms(&mut canvas, character, outfit, shot, Layer::Front);
    canvas.end();
    canvas.finish(size, shot.corner, shot.side)
}

fn arms(canvas: &mut Canvas, character: &Character, outfit: &Outfit, shot: &Shot, layer: Layer) {
    for (arm, side) in shot.pose.arms.iter().zip([-1.0, 1.0]) {
        if arm.layer == layer {
            let joints = body::arm_joints(arm, side);
            body::arm(canvas, joints, character.skin.1);
            body::hand(canvas, arm, joints, character.skin.1);
            clothes::sleeve(canvas, outfit, arm, side);
        }
    }
}

/// Spread of the knees beyond standing, by which skirts widen.
fn leg_spread(shot: &Shot) -> f64 {
    let knee = |index, side: f64| body::leg_joints(&shot.pose, index, side)[1].0 * side;
    ((knee(0, -1.0) + knee(1, 1.0)) / 2.0 - 12.0).clamp(0.0, 16.0)
}

fn transform(shot: &Shot) -> String {
    let mirror = if shot.mirrored {
        "translate(256 0) scale(-1 1) "
    } else {
        ""
    };
    format!(
        "{mirror}translate({} {:.1}) rotate({:.1} 0 {SOLES})",
        SHOULDERS.0,
        SHOULDERS.1 - shot.pose.lift,
        shot.lean
    )
}

/// The face as normalised (centre x, centre y, width, height), clipped to the image: the bounding
/// box of the corners of [`FACE`] after all transforms of the figure.
pub(super) fn face_box(shot: &Shot) -> [f64; 4] {
    let (mut low, mut high) = ((f64::MAX, f64::MAX), (f64::MIN, f64::MIN));
    for x in [FACE[0].0, FACE[1].0] {
        for y in [FACE[0].1, FACE[1].1] {
            let corner = on_image(shot, (x, y));
            low = (low.0.min(corner.0), low.1.min(corner.1));
            high = (high.0.max(corner.0), high.1.max(corner.1));
        }
    }
    let clip = |v: f64| v.clamp(0.0, 1.0);
    let (left, top, right, bottom) = (clip(low.0), clip(low.1), clip(high.0), clip(high.1));
    let round = |v: f64| (v * 1e6).round() / 1e6;
    [
        (left + right) / 2.0,
        (top + bottom) / 2.0,
        right - left,
        bottom - top,
    ]
    .map(round)
}

/// Converts a point in head coordinates to fractions of the image's width and height.
fn on_image(shot: &Shot, point: Point) -> Point {
    let in_body = rotate(point, shot.tilt, (0.0, NECK));
    let leaning = rotate((in_body.0, in_body.1 + HEAD), shot.lean, (0.0, SOLES));
    let (x, y) = (
        leaning.0 + SHOULDERS.0,
        leaning.1 + SHOULDERS.1 - shot.pose.lift,
    );
    let x = if shot.mirrored { 256.0 - x } else { x };
    (
        (x - shot.corner.0) / shot.side,
        (y - shot.corner.1) / shot.side,
    )
}

fn rotate((x, y): Point, degrees: f64, (cx, cy): Point) -> Point {
    let (sin, cos) = degrees.to_radians().sin_cos();
    let (dx, dy) = (x - cx, y - cy);
    (cx + dx * cos - dy * sin, cy + dx * sin + dy * cos)
}
