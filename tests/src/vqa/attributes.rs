//! What can be asked about a synthetic figure, and the answers that its tags give.

use model_data::sample::split_tags;
use std::collections::BTreeSet;

/// One of the paper's attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attribute {
    Head,
    Expression,
    Gesture,
    Activity,
}

/// Answers with the tags that say so; the first line whose tags are all there holds.
type Answers = &'static [(&'static [&'static str], &'static str)];

const HEAD: Answers = &[
    (
        &["looking_at_viewer", "head_tilt"],
        "facing the viewer with a tilted head",
    ),
    (&["looking_at_viewer"], "facing the viewer"),
    (&["head_tilt"], "turned to the side with a tilted head"),
    (&[], "turned to the side"),
];
const EXPRESSION: Answers = &[
    (&["one_eye_closed"], "winking"),
    (&["closed_eyes"], "laughing with closed eyes"),
    (&["tongue_out"], "sticking out the tongue"),
    (&["tears"], "crying"),
    (&["smug"], "smug"),
    (&["surprised"], "surprised"),
    (&["angry"], "angry"),
    (&["wavy_mouth"], "embarrassed"),
    (&["frown"], "sad"),
    (&["smile", "open_mouth"], "a big smile"),
    (&["smile"], "a gentle smile"),
    (&[], "no expression"),
];
const GESTURE: Answers = &[
    (&["portrait"], "the arms are not visible"),
    (&["waving"], "waving with one hand"),
    (&["hands_on_hips"], "both hands on the hips"),
    (&["hand_on_hip"], "one hand on the hip"),
    (&["outstretched_arms"], "stretching out both arms"),
    (&["arms_up"], "raising both arms"),
    (&["pointing"], "pointing at something"),
    (&["v"], "making a victory sign"),
    (&["hand_on_own_chest"], "a hand on the chest"),
    (&["own_hands_together"], "holding the hands together"),
    (&["arms_behind_back"], "arms behind the back"),
    (&["salute"], "saluting"),
    (&[], "arms at the sides"),
];
const ACTIVITY: Answers = &[
    (&["running"], "running"),
    (&["walking"], "walking"),
    (&["sitting"], "sitting"),
    (&["jumping"], "jumping"),
    (&["kneeling"], "kneeling"),
    (&["standing_on_one_leg"], "balancing on one leg"),
    (&["standing"], "standing"),
    (&[], "posing; the legs are not visible"),
];

impl Attribute {
    pub const ALL: [Self; 4] = [Self::Head, Self::Expression, Self::Gesture, Self::Activity];

    fn table(self) -> Answers {
        match self {
            Self::Head => HEAD,
            Self::Expression => EXPRESSION,
            Self::Gesture => GESTURE,
            Self::Activity => ACTIVITY,
        }
    }

    /// Number of different answers.
    #[must_use]
    pub fn classes(self) -> usize {
        self.table().len()
    }

    /// The answer with this number.
    #[must_use]
    pub fn answer(self, class: usize) -> &'static str {
        self.table()[class].1
    }

    /// The number of the answer for an image with these tags, joined by ", ".
    #[must_use]
    pub fn class(self, tags: &str) -> usize {
        let tags: BTreeSet<&str> = split_tags(tags).collect();
        let mut lines = self.table().iter();
        let found = lines.position(|(needed, _)| needed.iter().all(|it| tags.contains(it)));
        found.expect("the last line needs no tags")
    }

    /// What a question is about; None if it is about nothing that figures have.
    #[must_use]
    pub fn asked(question: &str) -> Option<Self> {
        let question = question.to_lowercase();
        let has = |words: &[&str]| words.iter().any(|it| question.contains(it));
        if has(&["expression", "emotion"]) {
            Some(Self::Expression)
        } else if has(&["arms", "hands", "gesture"]) {
            Some(Self::Gesture)
        } else if has(&["head"]) {
            Some(Self::Head)
        } else if has(&["doing", "activity", "action"]) {
            Some(Self::Activity)
        } else {
            None
        }
    }
}
