//! What the import and the decoder changed or guessed about a sample. Kept in the column `changes` of
//! a data set as `kind=detail`, counted by the import, `describe` and `verify`. Data, no sentences:
//! those are in [`ChangeKind::title`].

use serde::{Serialize, Serializer};
use std::fmt;

/// One change, or one guess, about one sample.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    pub kind: ChangeKind,
    /// What exactly, for instance "EXIF 6" for an orientation. "" if the kind says everything.
    pub detail: String,
}

impl Change {
    pub fn new(kind: ChangeKind, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self { kind, detail }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.detail.is_empty() {
            return f.write_str(self.kind.name());
        }
        write!(f, "{}={}", self.kind.name(), self.detail)
    }
}

impl Serialize for Change {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

macro_rules! kinds {
    ($($variant:ident, $name:literal, $title:literal;)*) => {
        /// The kinds of changes. A data set may hold kinds of a later release, which are counted by
        /// their name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum ChangeKind {
            $(#[doc = $title] $variant,)*
        }

        impl ChangeKind {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name in a data set.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// What happened, for a line that begins with a count.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self {
                    $(Self::$variant => $title,)*
                }
            }
        }
    };
}

kinds! {
    Orientation, "orientation", "turned upright as EXIF or XMP says";
    Profile, "profile", "converted from the embedded colour profile to sRGB";
    ProfileIgnored, "profile-ignored", "colour profile not applied: colours are read as sRGB";
    Frame, "frame", "one frame of an animation taken";
    Transparency, "transparency", "transparent image composited over white";
    Depth, "depth", "16 bits per channel reduced to 8";
    Cmyk, "cmyk", "CMYK converted to RGB without a profile";
    Trailing, "trailing-bytes", "bytes after the end of the image ignored";
    MaskAlpha, "mask-from-alpha", "mask taken from the alpha channel of the image";
    MaskNumbers, "mask-numbers", "mask of class numbers 0 and N read as background and figure";
    MaskColours, "mask-colours", "mask of black and one colour read as background and figure";
    MaskDepth, "mask-depth", "16-bit mask converted to 8 bits";
    FaceGuessed, "face-guessed", "face box guessed from the mask";
    Id, "id", "id cleaned (white space, invisible characters, Unicode form NFC)";
    Name, "name", "character, artist or outfit cleaned (white space, Unicode form NFC)";
    Spelling, "spelling", "name that differs from an earlier one only in case or spaces: the earlier spelling is used";
    Tags, "tags", "tags cleaned (lower case, underscores, Unicode form NFC), sorted or made unique";
    Rating, "rating", "short or capitalised rating spelled out";
}

impl ChangeKind {
    /// The kind that a data set names.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }
}
