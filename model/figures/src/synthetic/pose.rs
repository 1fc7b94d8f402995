//! Random attributes of one image of an identity: pose, expression, framing and angles, with their
//! tags.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hand {
    Round,
    Victory,
    Point,
}

/// Layer of an arm: behind the body, in front of the body, or in front of the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    Behind,
    Body,
    Front,
}

/// Angles in degrees: the upper part from straight down outwards, then the lower part relative to
/// the upper part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Arm {
    pub(super) angles: (f64, f64),
    pub(super) layer: Layer,
    pub(super) hand: Hand,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pose {
    /// Tags of every framing that shows the body, and tags that need visible legs.
    pub(super) tags: &'static [&'static str],
    pub(super) leg_tags: &'static [&'static str],
    pub(super) arms: [Arm; 2],
    pub(super) legs: [(f64, f64); 2],
    /// Lengths of thigh and shin.
    pub(super) leg_lengths: (f64, f64),
    /// Height of the body above its standing height.
    pub(super) lift: f64,
}

const fn arm(upper: f64, lower: f64, layer: Layer) -> Arm {
    Arm {
        angles: (upper, lower),
        layer,
        hand: Hand::Round,
    }
}

const DOWN: Arm = arm(16.0, 6.0, Layer::Body);
const STANDING: Pose = Pose {
    tags: &[],
    leg_tags: &["standing"],
    arms: [DOWN, DOWN],
    legs: [(4.0, 0.0), (4.0, 0.0)],
    leg_lengths: (26.0, 26.0),
    lift: 0.0,
};
const HIP: Arm = arm(58.0, -102.0, Layer::Body);
const UP: Arm = arm(142.0, 14.0, Layer::Front);

pub(super) const POSES: [Pose; 18] = [
    STANDING,
    Pose {
        tags: &["waving", "arm_up"],
        arms: [DOWN, arm(128.0, 36.0, Layer::Front)],
        ..STANDING
    },
    Pose {
        tags: &["hands_on_hips"],
        arms: [HIP, HIP],
        legs: [(9.0, 0.0), (9.0, 0.0)],
        ..STANDING
    },
    Pose {
        tags: &["hand_on_hip"],
        arms: [DOWN, HIP],
        legs: [(2.0, 0.0), (14.0, -4.0)],
        ..STANDING
    },
    Pose {
        tags: &["arms_up"],
        arms: [UP, UP],
        ..STANDING
    },
    Pose {
        tags: &["outstretched_arms"],
        arms: [arm(86.0, 4.0, Layer::Body), arm(86.0, 4.0, Layer::Body)],
        legs: [(12.0, 0.0), (12.0, 0.0)],
        ..STANDING
    },
    Pose {
        tags: &["pointing"],
        arms: [
            HIP,
            Arm {
                hand: Hand::Point,
                ..arm(92.0, 4.0, Layer::Front)
            },
        ],
        ..STANDING
    },
    Pose {
        tags: &["v"],
        arms: [
            DOWN,
            Arm {
                hand: Hand::Victory,
                ..arm(74.0, 92.0, Layer::Front)
            },
        ],
        ..STANDING
    },
    Pose {
        tags: &["hand_on_own_chest"],
        arms: [DOWN, arm(28.0, -150.0, Layer::Body)],
        ..STANDING
    },
    Pose {
        tags: &["own_hands_together"],
        arms: [arm(22.0, -84.0, Layer::Body), arm(22.0, -84.0, Layer::Body)],
        ..STANDING
    },
    Pose {
        tags: &[],
        leg_tags: &["running"],
        arms: [arm(48.0, -112.0, Layer::Body), arm(64.0, 34.0, Layer::Body)],
        legs: [(42.0, -74.0), (20.0, -4.0)],
        lift: 3.0,
        ..STANDING
    },
    Pose {
        tags: &[],
        leg_tags: &["walking"],
        arms: [arm(30.0, -14.0, Layer::Body), arm(34.0, 8.0, Layer::Behind)],
        legs: [(20.0, -26.0), (15.0, 0.0)],
        ..STANDING
    },
    Pose {
        tags: &[],
        leg_tags: &["sitting"],
        arms: [arm(34.0, -6.0, Layer::Body), arm(34.0, -6.0, Layer::Body)],
        legs: [(62.0, -20.0), (62.0, -20.0)],
        leg_lengths: (22.0, 20.0),
        lift: -32.0,
    },
    Pose {
        tags: &["arms_up"],
        leg_tags: &["jumping"],
        arms: [
            arm(124.0, 22.0, Layer::Front),
            arm(136.0, 10.0, Layer::Front),
        ],
        legs: [(40.0, -84.0), (26.0, -50.0)],
        lift: 14.0,
        ..STANDING
    },
    Pose {
        tags: &[],
        leg_tags: &["kneeling"],
        arms: [arm(20.0, -50.0, Layer::Body), arm(20.0, -50.0, Layer::Body)],
        legs: [(14.0, 50.0), (14.0, 50.0)],
        leg_lengths: (24.0, 12.0),
        lift: -20.0,
    },
    Pose {
        tags: &["arms_behind_back"],
        arms: [
            arm(30.0, -66.0, Layer::Behind),
            arm(30.0, -66.0, Layer::Behind),
        ],
        ..STANDING
    },
    Pose {
        tags: &["salute"],
        arms: [DOWN, arm(84.0, 118.0, Layer::Front)],
        ..STANDING
    },
    Pose {
        tags: &["outstretched_arms"],
        leg_tags: &["standing_on_one_leg"],
        arms: [arm(70.0, 10.0, Layer::Body), arm(104.0, 10.0, Layer::Body)],
        legs: [(2.0, 0.0), (34.0, -98.0)],
        ..STANDING
    },
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expression {
    Smile,
    Grin,
    Neutral,
    Sad,
    Angry,
    Wink,
    ClosedEyes,
    Surprised,
    Embarrassed,
    Tongue,
    Crying,
    Smug,
}

impl Expression {
    pub(super) const ALL: [Self; 12] = [
        Self::Smile,
        Self::Grin,
        Self::Neutral,
        Self::Sad,
        Self::Angry,
        Self::Wink,
        Self::ClosedEyes,
        Self::Surprised,
        Self::Embarrassed,
        Self::Tongue,
        Self::Crying,
        Self::Smug,
    ];

    pub(super) fn tags(self) -> &'static [&'static str] {
        match self {
            Self::Smile => &["smile", "closed_mouth"],
            Self::Grin => &["smile", "open_mouth"],
            Self::Neutral => &["expressionless", "closed_mouth"],
            Self::Sad => &["frown", "closed_mouth"],
            Self::Angry => &["angry", "v-shaped_eyebrows"],
            Self::Wink => &["one_eye_closed", "smile"],
            Self::ClosedEyes => &["closed_eyes", "open_mouth", "smile"],
            Self::Surprised => &["surprised", "open_mouth"],
            Self::Embarrassed => &["blush", "wavy_mouth"],
            Self::Tongue => &["tongue_out", "smile"],
            Self::Crying => &["tears", "open_mouth"],
            Self::Smug => &["smug", "half-closed_eyes"],
        }
    }

    pub(super) fn closes_both_eyes(self) -> bool {
        self == Self::ClosedEyes
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    FullBody,
    UpperBody,
    Portrait,
}

impl Framing {
    pub(super) fn tag(self) -> &'static str {
        match self {
            Self::FullBody => "full_body",
            Self::UpperBody => "upper_body",
            Self::Portrait => "portrait",
        }
    }

    /// The visible depth for [`super::design::Outfit::tags`].
    pub(super) fn depth(self) -> u8 {
        match self {
            Self::FullBody => 2,
            Self::UpperBody => 1,
            Self::Portrait => 0,
        }
    }
}

/// The random attributes of one image.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shot {
    pub(super) pose: Pose,
    pub(super) expression: Expression,
    pub(super) framing: Framing,
    /// Degrees.
    pub(super) tilt: f64,
    pub(super) lean: f64,
    /// -1 left .. 1 right.
    pub(super) yaw: f64,
    pub(super) mirrored: bool,
    /// The view box, in the units of a 256-unit image: top left corner and side.
    pub(super) corner: (f64, f64),
    pub(super) side: f64,
}

impl Shot {
    pub(super) fn sample(rng: &mut ChaCha8Rng) -> Self {
        let mut pose = *POSES.choose(rng).expect("there are poses");
        let mut jitter = |angles: &mut (f64, f64), by: f64| {
            angles.0 += rng.random_range(-by..=by);
            angles.1 += rng.random_range(-by..=by);
        };
        pose.arms
            .iter_mut()
            .for_each(|a| jitter(&mut a.angles, 7.0));
        pose.legs.iter_mut().for_each(|l| jitter(l, 3.0));
        let framings = [
            Framing::FullBody,
            Framing::FullBody,
            Framing::UpperBody,
            Framing::UpperBody,
            Framing::Portrait,
        ];
        let framing = *framings.choose(rng).expect("there are framings");
        let (centre, side) = match framing {
            Framing::FullBody => ((128.0, 132.0), rng.random_range(244.0..268.0)),
            Framing::UpperBody => ((128.0, 112.0), rng.random_range(172.0..192.0)),
            Framing::Portrait => ((128.0, 88.0), rng.random_range(132.0..150.0)),
        };
        let shift = |rng: &mut ChaCha8Rng, by: f64| rng.random_range(-by..=by);
        let (dx, dy) = (shift(rng, side * 0.06), shift(rng, side * 0.015));
        // A portrait or upper body follows the body when it sits or jumps.
        let follow = if framing == Framing::FullBody {
            0.0
        } else {
            -pose.lift
        };
        Self {
            expression: *Expression::ALL.choose(rng).expect("there are expressions"),
            tilt: rng.random_range(-11.0..=11.0),
            lean: rng.random_range(-5.0..=5.0),
            yaw: rng.random_range(-1.0..=1.0),
            mirrored: rng.random_bool(0.5),
            corner: (
                centre.0 - side / 2.0 + dx,
                centre.1 - side / 2.0 + dy + follow,
            ),
            pose,
            framing,
            side,
        }
    }

    pub(super) fn tags(&self) -> Vec<&'static str> {
        let mut tags = vec!["solo", self.framing.tag()];
        tags.extend(self.expression.tags());
        tags.extend(
            self.pose
                .tags
                .iter()
                .filter(|_| self.framing != Framing::Portrait),
        );
        if self.framing == Framing::FullBody {
            tags.extend(self.pose.leg_tags);
        }
        if self.tilt.abs() > 7.0 {
            tags.push("head_tilt");
        }
        if self.yaw.abs() < 0.35 && !self.expression.closes_both_eyes() {
            tags.push("looking_at_viewer");
        }
        tags
    }
}
