//! The attributes of an identity (character, outfit, artist), sampled from a seed, and the tags
//! that describe them.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::colour::{CLOTH, EYES, Named, SKIN};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shading {
    Flat,
    Soft,
    Cel,
}

/// A drawing style.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Artist {
    pub(super) name: &'static str,
    /// Outline width in units of a 256-unit image.
    pub(super) line: f64,
    pub(super) tinted_lines: bool,
    pub(super) shading: Shading,
    /// Scale of the height of the eyes.
    pub(super) eye_height: f64,
    pub(super) blush: f64,
}

pub(super) const ARTISTS: [Artist; 3] = [
    Artist {
        name: "inkwell",
        line: 3.4,
        tinted_lines: false,
        shading: Shading::Flat,
        eye_height: 1.0,
        blush: 0.45,
    },
    Artist {
        name: "peachfuzz",
        line: 1.5,
        tinted_lines: true,
        shading: Shading::Soft,
        eye_height: 1.1,
        blush: 0.7,
    },
    Artist {
        name: "celestine",
        line: 2.3,
        tinted_lines: true,
        shading: Shading::Cel,
        eye_height: 0.94,
        blush: 0.3,
    },
];

/// An enum whose variants can be sampled.
macro_rules! choices {
    ($name:ident { $($variant:ident),+ $(,)? }) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum $name { $($variant),+ }
        impl $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];
        }
    };
}

choices!(Back {
    Long,
    Wavy,
    Bob,
    Short,
    Twintails,
    LowTwintails,
    Ponytail,
    SidePonytail,
    Buns,
    Braids,
    Drills
});
choices!(Bangs {
    Blunt,
    Swept,
    Parted,
    Tufts,
    Spiky,
    Curved
});
choices!(EyeShape {
    Round,
    Sharp,
    Drooping
});
choices!(Accessory {
    None,
    Clip,
    Bow,
    Ribbon,
    Hairband,
    Glasses,
    Flower,
    CatEars,
    Horns,
    Headphones,
    Eyepatch
});
choices!(Detail {
    None,
    Mole,
    Freckles,
    Bandage,
    FaceMark
});
choices!(Top {
    Sailor,
    Shirt,
    Hoodie,
    Tee,
    Sweater,
    Blazer,
    Dress,
    Kimono,
    Overalls,
    Maid,
    Cape,
    Qipao
});
choices!(Bottom {
    Pleated,
    LongSkirt,
    Shorts,
    Pants
});
choices!(Legwear {
    None,
    Socks,
    Thighhighs,
    Striped,
    Pantyhose
});
choices!(Shoes {
    Loafers,
    Boots,
    Sneakers
});
choices!(Hat {
    Witch,
    Beret,
    Cap,
    Straw,
    Crown
});

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sleeves {
    Long,
    Short,
    Puffy,
    Detached,
    None,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Character {
    pub(super) girl: bool,
    pub(super) hair: Named,
    pub(super) back: Back,
    pub(super) bangs: Bangs,
    pub(super) ahoge: bool,
    pub(super) sidelocks: bool,
    pub(super) eyes: Named,
    pub(super) eye_shape: EyeShape,
    pub(super) skin: Named,
    pub(super) accessory: Accessory,
    pub(super) accessory_colour: Named,
    pub(super) detail: Detail,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Outfit {
    pub(super) top: Top,
    pub(super) bottom: Bottom,
    pub(super) sleeves: Sleeves,
    pub(super) legwear: Legwear,
    pub(super) shoes: Shoes,
    pub(super) hat: Option<Hat>,
    pub(super) scarf: bool,
    pub(super) striped: bool,
    pub(super) main: Named,
    pub(super) second: Named,
    pub(super) accent: Named,
    pub(super) leg_colour: Named,
}

impl Character {
    /// `hair` is chosen by the caller, which distributes the colours evenly.
    pub(super) fn sample(hair: Named, rng: &mut ChaCha8Rng) -> Self {
        let girl = rng.random_bool(0.72);
        let boyish = [Back::Short, Back::Short, Back::Bob, Back::Ponytail];
        let boy_bangs = [Bangs::Spiky, Bangs::Tufts, Bangs::Swept, Bangs::Parted];
        let skin = [0, 0, 0, 1, 1, 1, 2, 3];
        let accessory = *pick(Accessory::ALL, rng);
        Self {
            girl,
            hair,
            back: if girl {
                *pick(Back::ALL, rng)
            } else {
                *pick(&boyish, rng)
            },
            bangs: if girl {
                *pick(Bangs::ALL, rng)
            } else {
                *pick(&boy_bangs, rng)
            },
            ahoge: rng.random_bool(0.3),
            sidelocks: girl && rng.random_bool(0.55),
            eyes: *pick(&EYES, rng),
            eye_shape: *pick(EyeShape::ALL, rng),
            skin: SKIN[*pick(&skin, rng)],
            accessory: if !girl && matches!(accessory, Accessory::Bow | Accessory::Ribbon) {
                Accessory::None
            } else {
                accessory
            },
            accessory_colour: *pick(&CLOTH, rng),
            detail: *pick(Detail::ALL, rng),
        }
    }

    pub(super) fn tags(&self, eyes_shown: bool) -> Vec<String> {
        let mut tags: Vec<String> = vec![
            if self.girl { "1girl" } else { "1boy" }.to_owned(),
            format!("{}_hair", self.hair.0),
            match self.back {
                Back::Short | Back::Buns => "short_hair",
                Back::Bob => "bob_cut",
                _ => "long_hair",
            }
            .to_owned(),
        ];
        if eyes_shown {
            tags.push(format!("{}_eyes", self.eyes.0));
        }
        let style = match self.back {
            Back::Twintails => "twintails",
            Back::LowTwintails => "low_twintails",
            Back::Ponytail => "ponytail",
            Back::SidePonytail => "side_ponytail",
            Back::Buns => "double_bun",
            Back::Braids => "twin_braids",
            Back::Drills => "twin_drills",
            Back::Wavy => "wavy_hair",
            Back::Long | Back::Bob | Back::Short => "",
        };
        let bangs = match self.bangs {
            Bangs::Blunt => "blunt_bangs",
            Bangs::Swept => "swept_bangs",
            Bangs::Parted => "parted_bangs",
            Bangs::Tufts => "hair_between_eyes",
            Bangs::Spiky => "spiky_hair",
            Bangs::Curved => "curved_bangs",
        };
        tags.extend([style, bangs].map(str::to_owned));
        if self.ahoge {
            tags.push("ahoge".to_owned());
        }
        if self.skin.0 == "dark" {
            tags.push("dark_skin".to_owned());
        }
        match self.detail {
            Detail::None => {}
            Detail::Mole => tags.push("mole_under_eye".to_owned()),
            Detail::Freckles => tags.push("freckles".to_owned()),
            Detail::Bandage => tags.push("bandaid_on_face".to_owned()),
            Detail::FaceMark => tags.push("facial_mark".to_owned()),
        }
        tags.extend(self.accessory_cloths());
        match self.accessory {
            Accessory::CatEars => tags.extend(["animal_ears", "cat_ears"].map(str::to_owned)),
            Accessory::Horns => tags.push("horns".to_owned()),
            _ => {}
        }
        tags.retain(|t| !t.is_empty());
        tags
    }

    /// Accessories that count as clothes (notes 2.2: hair ornaments do).
    pub(super) fn accessory_cloths(&self) -> Vec<String> {
        let colour = self.accessory_colour.0;
        match self.accessory {
            Accessory::Clip => vec!["hairclip".to_owned(), "hair_ornament".to_owned()],
            Accessory::Bow => vec!["hair_bow".to_owned(), format!("{colour}_bow")],
            Accessory::Ribbon => vec!["hair_ribbon".to_owned(), format!("{colour}_ribbon")],
            Accessory::Hairband => vec!["hairband".to_owned(), format!("{colour}_hairband")],
            Accessory::Glasses => vec!["glasses".to_owned()],
            Accessory::Flower => vec!["hair_flower".to_owned(), "hair_ornament".to_owned()],
            Accessory::Headphones => vec!["headphones".to_owned()],
            Accessory::Eyepatch => vec!["eyepatch".to_owned()],
            Accessory::None | Accessory::CatEars | Accessory::Horns => Vec::new(),
        }
    }
}

impl Outfit {
    pub(super) fn sample(character: &Character, rng: &mut ChaCha8Rng) -> Self {
        let boy_tops = [
            Top::Shirt,
            Top::Hoodie,
            Top::Tee,
            Top::Sweater,
            Top::Blazer,
            Top::Kimono,
            Top::Overalls,
            Top::Cape,
        ];
        let top = if character.girl {
            *pick(Top::ALL, rng)
        } else {
            *pick(&boy_tops, rng)
        };
        let bottom = match top {
            Top::Sailor => Bottom::Pleated,
            Top::Overalls => Bottom::Pants,
            _ if !character.girl => *pick(&[Bottom::Pants, Bottom::Pants, Bottom::Shorts], rng),
            _ => *pick(Bottom::ALL, rng),
        };
        let sleeves = match top {
            Top::Kimono | Top::Hoodie | Top::Sweater | Top::Blazer => Sleeves::Long,
            Top::Maid => Sleeves::Puffy,
            Top::Tee => Sleeves::Short,
            Top::Dress => *pick(
                &[
                    Sleeves::Puffy,
                    Sleeves::Short,
                    Sleeves::None,
                    Sleeves::Detached,
                ],
                rng,
            ),
            Top::Qipao => *pick(&[Sleeves::Short, Sleeves::None, Sleeves::Detached], rng),
            Top::Overalls | Top::Sailor | Top::Shirt | Top::Cape => {
                *pick(&[Sleeves::Long, Sleeves::Short], rng)
            }
        };
        let legwear = if character.girl {
            *pick(Legwear::ALL, rng)
        } else {
            *pick(&[Legwear::None, Legwear::Socks], rng)
        };
        let head_is_free = !matches!(
            character.accessory,
            Accessory::CatEars
                | Accessory::Horns
                | Accessory::Headphones
                | Accessory::Hairband
                | Accessory::Bow
        ) && character.back != Back::Buns;
        let hat = (rng.random_bool(0.25) && head_is_free).then(|| *pick(Hat::ALL, rng));
        let main = *pick(&CLOTH, rng);
        let second = other_than(&[main], rng);
        let accent = other_than(&[main, second], rng);
        Self {
            top,
            bottom,
            sleeves,
            legwear,
            shoes: *pick(Shoes::ALL, rng),
            hat,
            scarf: !matches!(top, Top::Sailor | Top::Cape | Top::Hoodie) && rng.random_bool(0.15),
            striped: matches!(top, Top::Tee | Top::Sweater) && rng.random_bool(0.5),
            main,
            second,
            accent,
            leg_colour: *pick(&[CLOTH[9], CLOTH[8], second, accent], rng),
        }
    }

    /// True if one garment covers body and hips.
    pub(super) fn one_piece(&self) -> bool {
        matches!(self.top, Top::Dress | Top::Kimono | Top::Maid | Top::Qipao)
    }

    /// Clothing tags that are visible down to the hips, the knees or the feet (`depth` 0, 1, 2).
    pub(super) fn tags(&self, depth: u8) -> Vec<String> {
        let main = self.main.0;
        let mut tags = match self.top {
            Top::Sailor => vec![
                "school_uniform".to_owned(),
                "serafuku".to_owned(),
                format!("{main}_shirt"),
            ],
            Top::Shirt => vec![
                "collared_shirt".to_owned(),
                format!("{main}_shirt"),
                format!("{}_necktie", self.accent.0),
            ],
            Top::Hoodie => vec!["hoodie".to_owned(), format!("{main}_hoodie")],
            Top::Tee => vec!["t-shirt".to_owned(), format!("{main}_shirt")],
            Top::Sweater => vec!["turtleneck".to_owned(), format!("{main}_sweater")],
            Top::Blazer => vec![
                "blazer".to_owned(),
                format!("{main}_jacket"),
                "white_shirt".to_owned(),
            ],
            Top::Dress => vec!["dress".to_owned(), format!("{main}_dress")],
            Top::Kimono => vec![
                "kimono".to_owned(),
                format!("{main}_kimono"),
                "obi".to_owned(),
                "wide_sleeves".to_owned(),
            ],
            Top::Overalls => vec![
                "overalls".to_owned(),
                format!("{main}_overalls"),
                format!("{}_shirt", self.second.0),
            ],
            Top::Maid => vec![
                "maid".to_owned(),
                "apron".to_owned(),
                format!("{main}_dress"),
            ],
            Top::Cape => vec![
                "cape".to_owned(),
                format!("{main}_cape"),
                format!("{}_shirt", self.second.0),
            ],
            Top::Qipao => vec!["china_dress".to_owned(), format!("{main}_dress")],
        };
        match self.sleeves {
            Sleeves::Long => tags.push("long_sleeves".to_owned()),
            Sleeves::Short => tags.push("short_sleeves".to_owned()),
            Sleeves::Puffy => tags.push("puffy_sleeves".to_owned()),
            Sleeves::Detached => tags.push("detached_sleeves".to_owned()),
            Sleeves::None => tags.push("sleeveless".to_owned()),
        }
        if self.striped {
            tags.push("striped".to_owned());
        }
        if self.scarf {
            tags.extend(["scarf".to_owned(), format!("{}_scarf", self.accent.0)]);
        }
        match self.hat {
            None => {}
            Some(Hat::Witch) => tags.extend(["hat", "witch_hat"].map(str::to_owned)),
            Some(Hat::Beret) => tags.extend(["hat", "beret"].map(str::to_owned)),
            Some(Hat::Cap) => tags.extend(["hat", "baseball_cap"].map(str::to_owned)),
            Some(Hat::Straw) => tags.extend(["hat", "straw_hat"].map(str::to_owned)),
            Some(Hat::Crown) => tags.push("crown".to_owned()),
        }
        if depth >= 1 && !self.one_piece() && self.top != Top::Overalls {
            tags.extend(self.bottom_tags());
        }
        if depth >= 2 {
            tags.extend(self.leg_tags());
        }
        tags
    }

    fn bottom_tags(&self) -> Vec<String> {
        let second = self.second.0;
        match self.bottom {
            Bottom::Pleated => vec![
                "skirt".to_owned(),
                "pleated_skirt".to_owned(),
                format!("{second}_skirt"),
            ],
            Bottom::LongSkirt => vec![
                "skirt".to_owned(),
                "long_skirt".to_owned(),
                format!("{second}_skirt"),
            ],
            Bottom::Shorts => vec!["shorts".to_owned(), format!("{second}_shorts")],
            Bottom::Pants => vec!["pants".to_owned(), format!("{second}_pants")],
        }
    }

    fn leg_tags(&self) -> Vec<String> {
        let (colour, pants) = (
            self.leg_colour.0,
            self.bottom == Bottom::Pants && !self.one_piece(),
        );
        let mut tags = match (pants || self.top == Top::Kimono, self.legwear) {
            (true, _) | (_, Legwear::None) => Vec::new(),
            (_, Legwear::Socks) => vec!["socks".to_owned(), format!("{colour}_socks")],
            (_, Legwear::Thighhighs) => {
                vec!["thighhighs".to_owned(), format!("{colour}_thighhighs")]
            }
            (_, Legwear::Striped) => vec!["thighhighs".to_owned(), "striped_thighhighs".to_owned()],
            (_, Legwear::Pantyhose) => vec!["pantyhose".to_owned(), format!("{colour}_pantyhose")],
        };
        let shoes = match self.shoes {
            Shoes::Loafers => "loafers",
            Shoes::Boots => "boots",
            Shoes::Sneakers => "sneakers",
        };
        tags.push(shoes.to_owned());
        tags
    }
}

fn pick<'a, T>(list: &'a [T], rng: &mut ChaCha8Rng) -> &'a T {
    list.choose(rng)
        .expect("the lists of this file are not empty")
}

fn other_than(used: &[Named], rng: &mut ChaCha8Rng) -> Named {
    let free: Vec<Named> = CLOTH
        .iter()
        .copied()
        .filter(|c| !used.contains(c))
        .collect();
    *pick(&free, rng)
}
