//! What the import and the decoder changed or guessed about a sample. Kept in the column `changes`
//! of a data set as `kind=detail`, counted by the import, `describe` and `verify`. Data, no
//! sentences: those are in [`ChangeKind::title`].

use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
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

impl Change {
    /// For people.
    #[must_use]
    pub fn sentence(&self) -> String {
        let title = self.kind.title();
        if self.detail.is_empty() {
            return title.to_owned();
        }
        format!("{title} ({})", self.detail)
    }
}

/// How many samples have a kind of change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ChangeCount {
    pub samples: u64,
    /// One of them, and the detail.
    pub example: String,
}

/// Counts by the name of the kind, which may be of a later release.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ChangeCounts(pub BTreeMap<String, ChangeCount>);

impl ChangeCounts {
    /// Counts the changes of one sample, each kind once. `sample` names it in an example.
    pub fn add<'a>(&mut self, sample: &str, changes: impl IntoIterator<Item = &'a str>) {
        let mut seen: Vec<&str> = Vec::new();
        for change in changes {
            let (name, detail) = change.split_once('=').unwrap_or((change, ""));
            if seen.contains(&name) {
                continue;
            }
            seen.push(name);
            let count = self.0.entry(name.to_owned()).or_default();
            count.samples += 1;
            if count.samples == 1 {
                count.example = match detail {
                    "" => sample.to_owned(),
                    detail => format!("{sample}: {detail}"),
                };
            }
        }
    }

    /// A line for each kind.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let line = |(name, count): (&String, &ChangeCount)| {
            let title = match ChangeKind::parse(name) {
                Some(kind) => kind.title(),
                None => name,
            };
            format!(
                "{}: {title} (for instance {})",
                count.samples, count.example
            )
        };
        self.0.iter().map(line).collect()
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
    NoArtist, "no-artist", "no artist: rows are grouped without one";
    Whole, "whole-image", "no mask: the whole image counts as the figure";
    Id, "id", "id cleaned (white space, invisible characters, Unicode form NFC)";
    Name, "name", "character, artist or outfit cleaned (white space, Unicode form NFC)";
    Spelling, "spelling", "name spelled as an earlier one that differs only in case or spaces";
    Tags, "tags", "tags cleaned (lower case, underscores, Unicode form NFC), sorted or made unique";
    Rating, "rating", "short or capitalised rating spelled out";
    ByteOrderMark, "byte-order-mark", "byte order mark (BOM) at the start of a line skipped";
}

impl ChangeKind {
    /// The kind that a data set names.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }

    /// True if the pixels of the image are no longer those of its file.
    pub(super) fn rewrites_image(self) -> bool {
        matches!(
            self,
            Self::Orientation | Self::Profile | Self::Frame | Self::Transparency | Self::Depth
        )
    }

    /// True if a row of a data set with this change pending shows the model something else than its
    /// author saw: a fault of the data set, which another import repairs.
    #[must_use]
    pub fn is_fault_of_stored(self) -> bool {
        matches!(
            self,
            Self::Orientation
                | Self::Profile
                | Self::MaskNumbers
                | Self::MaskColours
                | Self::MaskDepth
        )
    }
}
