//! Colours with their tag words. The palettes have few, saturated and distant colours, so that a
//! small model (and a person) can distinguish identities by colour at 64 pixels.

/// An sRGB colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Colour(pub(super) u8, pub(super) u8, pub(super) u8);

impl Colour {
    /// Darker below 1, lighter above. Lightening mixes in white instead of clipping channels.
    pub(super) fn shade(self, factor: f64) -> Self {
        let one = |v: u8| {
            let v = f64::from(v);
            let out = if factor <= 1.0 {
                v * factor
            } else {
                v + (255.0 - v) * (factor - 1.0).min(1.0)
            };
            out.round() as u8
        };
        Self(one(self.0), one(self.1), one(self.2))
    }

    /// Mixes in a fraction of `other`.
    pub(super) fn mix(self, other: Self, fraction: f64) -> Self {
        let one = |a: u8, b: u8| {
            (f64::from(a) * (1.0 - fraction) + f64::from(b) * fraction).round() as u8
        };
        Self(
            one(self.0, other.0),
            one(self.1, other.1),
            one(self.2, other.2),
        )
    }

    pub(super) fn hex(self) -> String {
        format!("#{:02x}{:02x}{:02x}", self.0, self.1, self.2)
    }

    /// 0 black .. 1 white.
    pub(super) fn luma(self) -> f64 {
        (0.299 * f64::from(self.0) + 0.587 * f64::from(self.1) + 0.114 * f64::from(self.2)) / 255.0
    }
}

/// A colour and the word that tags use for it.
pub(super) type Named = (&'static str, Colour);

pub(super) const WHITE: Colour = Colour(255, 255, 255);
pub(super) const INK: Colour = Colour(42, 28, 40);

pub(super) const HAIR: [Named; 12] = [
    ("black", Colour(44, 42, 58)),
    ("brown", Colour(126, 74, 42)),
    ("blonde", Colour(246, 206, 84)),
    ("orange", Colour(240, 126, 46)),
    ("red", Colour(200, 44, 44)),
    ("pink", Colour(246, 142, 186)),
    ("purple", Colour(138, 80, 200)),
    ("blue", Colour(58, 104, 214)),
    ("aqua", Colour(92, 206, 224)),
    ("green", Colour(62, 164, 92)),
    ("white", Colour(236, 238, 246)),
    ("grey", Colour(150, 156, 172)),
];

pub(super) const EYES: [Named; 9] = [
    ("blue", Colour(52, 110, 220)),
    ("green", Colour(48, 158, 84)),
    ("brown", Colour(140, 82, 42)),
    ("purple", Colour(136, 66, 190)),
    ("red", Colour(206, 44, 52)),
    ("aqua", Colour(36, 176, 190)),
    ("yellow", Colour(226, 168, 30)),
    ("pink", Colour(232, 90, 150)),
    ("orange", Colour(230, 116, 36)),
];

pub(super) const SKIN: [Named; 4] = [
    ("fair", Colour(255, 230, 214)),
    ("light", Colour(250, 214, 186)),
    ("tan", Colour(226, 172, 130)),
    ("dark", Colour(160, 104, 74)),
];

pub(super) const CLOTH: [Named; 12] = [
    ("red", Colour(216, 46, 50)),
    ("orange", Colour(242, 136, 38)),
    ("yellow", Colour(246, 208, 60)),
    ("green", Colour(44, 150, 82)),
    ("aqua", Colour(64, 192, 200)),
    ("blue", Colour(44, 90, 204)),
    ("purple", Colour(120, 62, 178)),
    ("pink", Colour(244, 132, 176)),
    ("white", Colour(246, 246, 248)),
    ("black", Colour(50, 48, 60)),
    ("brown", Colour(140, 92, 54)),
    ("grey", Colour(142, 148, 160)),
];
