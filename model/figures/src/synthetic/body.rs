//! Joints and bare skin. Body coordinates: the origin is between the shoulders, the hips are at y =
//! 48, the soles near y = 104.

use super::canvas::{Canvas, Point};
use super::colour::{Colour, Named};
use super::pose::{Arm, Hand, Pose};

const UPPER_ARM: f64 = 27.0;
const LOWER_ARM: f64 = 25.0;
pub(super) const HIP_Y: f64 = 48.0;

/// Shoulder, elbow, hand of the arm on `side` (-1 or 1).
pub(super) fn arm_joints(arm: &Arm, side: f64) -> [Point; 3] {
    let shoulder = (side * 17.0, 7.0);
    let elbow = along(shoulder, side * arm.angles.0, UPPER_ARM);
    [
        shoulder,
        elbow,
        along(elbow, side * (arm.angles.0 + arm.angles.1), LOWER_ARM),
    ]
}

/// Hip, knee, ankle of the leg on `side`.
pub(super) fn leg_joints(pose: &Pose, index: usize, side: f64) -> [Point; 3] {
    let (thigh, shin) = pose.legs[index];
    let hip = (side * 10.0, HIP_Y);
    let knee = along(hip, side * thigh, pose.leg_lengths.0);
    [
        hip,
        knee,
        along(knee, side * (thigh + shin), pose.leg_lengths.1),
    ]
}

/// The part of a bent limb between two fractions of its length.
pub(super) fn part([a, b, c]: [Point; 3], from: f64, to: f64) -> [Point; 3] {
    let at = |t: f64| {
        if t <= 0.5 {
            between(a, b, t * 2.0)
        } else {
            between(b, c, t * 2.0 - 1.0)
        }
    };
    let bend = if from < 0.5 && to > 0.5 {
        b
    } else {
        at((from + to) / 2.0)
    };
    [at(from), bend, at(to)]
}

fn along((x, y): Point, degrees: f64, length: f64) -> Point {
    let angle = degrees.to_radians();
    (x + length * angle.sin(), y + length * angle.cos())
}

fn between(a: Point, b: Point, fraction: f64) -> Point {
    (a.0 + (b.0 - a.0) * fraction, a.1 + (b.1 - a.1) * fraction)
}

pub(super) fn leg(canvas: &mut Canvas, joints: [Point; 3], skin: Colour) {
    canvas.limb(joints, 13.0, skin);
}

pub(super) fn arm(canvas: &mut Canvas, joints: [Point; 3], skin: Colour) {
    canvas.limb(joints, 10.5, skin);
}

pub(super) fn hand(canvas: &mut Canvas, arm: &Arm, joints: [Point; 3], skin: Colour) {
    let [_, elbow, hand] = joints;
    let length = (hand.0 - elbow.0).hypot(hand.1 - elbow.1).max(1.0);
    let (dx, dy) = ((hand.0 - elbow.0) / length, (hand.1 - elbow.1) / length);
    let finger = |canvas: &mut Canvas, spread: f64| {
        let (fx, fy) = (dx - dy * spread, dy + dx * spread);
        let tip = (hand.0 + fx * 14.0, hand.1 + fy * 14.0);
        canvas.limb([hand, between(hand, tip, 0.5), tip], 4.6, skin);
    };
    match arm.hand {
        Hand::Round => {}
        Hand::Victory => {
            finger(canvas, 0.36);
            finger(canvas, -0.36);
        }
        Hand::Point => finger(canvas, 0.0),
    }
    canvas.ball((hand.0 + dx * 2.0, hand.1 + dy * 2.0), 6.6, 6.6, skin);
}

pub(super) fn neck_and_torso(canvas: &mut Canvas, skin: Named) {
    canvas.shape("M-7 -14H7V4H-7Z", skin.1.shade(0.86));
    canvas.shape("M-19 3Q0 -4 19 3L16 26L19 50Q0 56 -19 50L-16 26Z", skin.1);
}
