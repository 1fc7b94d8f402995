//! Separates tags of appearance from tags of pose, action and scene. Used to request a pose without
//! the identity, so that only the references determine the identity.

use crate::sample::{join_tags, split_tags};

const ENDINGS: [&str; 65] = [
    "_hair",
    "_eyes",
    "_skin",
    "_bangs",
    "bangs",
    "_bow",
    "_ribbon",
    "_hairband",
    "hairband",
    "_skirt",
    "skirt",
    "_shirt",
    "shirt",
    "_dress",
    "dress",
    "_jacket",
    "jacket",
    "_hoodie",
    "hoodie",
    "_sweater",
    "sweater",
    "_kimono",
    "kimono",
    "_pants",
    "pants",
    "_shorts",
    "shorts",
    "_socks",
    "socks",
    "thighhighs",
    "kneehighs",
    "pantyhose",
    "legwear",
    "_scarf",
    "scarf",
    "_cape",
    "cape",
    "cloak",
    "_overalls",
    "overalls",
    "_necktie",
    "necktie",
    "_uniform",
    "sleeves",
    "_hat",
    "hat",
    "_cap",
    "shoes",
    "loafers",
    "boots",
    "sneakers",
    "gloves",
    "_ears",
    "horns",
    "wings",
    "tail",
    "armor",
    "robe",
    "glasses",
    "apron",
    "blazer",
    "swimsuit",
    "bikini",
    "hood",
    "beard",
];

const WORDS: [&str; 38] = [
    "twintails",
    "low_twintails",
    "ponytail",
    "side_ponytail",
    "double_bun",
    "twin_braids",
    "twin_drills",
    "bob_cut",
    "ahoge",
    "hair_between_eyes",
    "mole_under_eye",
    "freckles",
    "bandaid_on_face",
    "facial_mark",
    "hairclip",
    "hair_ornament",
    "hair_flower",
    "headphones",
    "eyepatch",
    "crown",
    "beret",
    "serafuku",
    "maid",
    "obi",
    "turtleneck",
    "striped",
    "frills",
    "sleeveless",
    "detached_collar",
    "choker",
    "belt",
    "hood_down",
    "pointy_ears",
    "jewelry",
    "undead",
    "skeleton",
    "tsurime",
    "tareme",
];

/// Background tags of the synthetic figures, in addition to those that end in `_background`.
const BACKGROUNDS: [&str; 18] = [
    "outdoors",
    "indoors",
    "sky",
    "cloud",
    "grass",
    "sunset",
    "mountain",
    "night_sky",
    "star_(sky)",
    "moon",
    "beach",
    "ocean",
    "cherry_blossoms",
    "tree",
    "classroom",
    "chalkboard",
    "window",
    "bookshelf",
];

/// Background on which the figure can be segmented.
const WHITE_BACKGROUND: [&str; 2] = ["simple_background", "white_background"];

/// True if a tag describes the background.
#[must_use]
pub fn is_background_tag(tag: &str) -> bool {
    tag.ends_with("_background") || BACKGROUNDS.contains(&tag)
}

/// True if a tag describes hair, eyes, skin, body features, accessories or clothes.
#[must_use]
pub fn is_appearance_tag(tag: &str) -> bool {
    // "closed_eyes" is an expression and not an appearance: these prefixes take precedence over
    // endings.
    let expression =
        tag.starts_with("closed_") || tag.starts_with("half-closed") || tag.contains("_closed");
    !expression
        && (WORDS.contains(&tag) || ENDINGS.iter().any(|ending| ending_matches(tag, ending)))
}

/// The prompt without appearance tags.
#[must_use]
pub fn without_appearance(prompt: &str) -> String {
    join_tags(split_tags(prompt).filter(|tag| !is_appearance_tag(tag)))
}

/// The prompt without appearance and background tags, on a white background. The identity must then
/// come from the references, and the figure can be segmented to identify it.
#[must_use]
pub fn pose_prompt(prompt: &str) -> String {
    let pose = split_tags(prompt).filter(|tag| !is_appearance_tag(tag) && !is_background_tag(tag));
    join_tags(pose.chain(WHITE_BACKGROUND))
}

/// True if the tag is the word, or ends with it after "_" or "-".
fn ending_matches(tag: &str, ending: &str) -> bool {
    let word = ending.trim_start_matches('_');
    tag.strip_suffix(word)
        .is_some_and(|before| before.is_empty() || before.ends_with('_') || before.ends_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appearance_and_background_tags_are_removed_and_pose_tags_stay() {
        let prompt = "1girl, blue_hair, closed_eyes, cloud, full_body, long_hair, one_eye_closed, \
                      outdoors, pleated_skirt, red_eyes, serafuku, sky, smile, solo, standing, \
                      t-shirt, twintails, waving";
        assert_eq!(
            pose_prompt(prompt),
            "1girl, closed_eyes, full_body, one_eye_closed, simple_background, smile, solo, \
            standing, waving, white_background"
        );
    }

    #[test]
    fn without_appearance_the_background_stays() {
        let prompt = "1girl, beach, blue_hair, red_eyes, sailor_collar, smile, white_shirt";
        assert_eq!(
            without_appearance(prompt),
            "1girl, beach, sailor_collar, smile"
        );
    }

    #[test]
    fn endings_match_whole_words() {
        assert!(is_appearance_tag("hat") && is_appearance_tag("witch_hat"));
        assert!(!is_appearance_tag("what") && !is_appearance_tag("landscape"));
    }
}
