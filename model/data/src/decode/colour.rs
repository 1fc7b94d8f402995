//! Converts the colours of an image to sRGB, in which the model sees everything. The profile is an
//! ICC profile of any of the three formats, or PNG's chunks cICP, sRGB, gAMA and cHRM, of which the
//! first in that order counts (PNG 3, section 13.16).

use bytes::Bytes;
use image::{DynamicImage, RgbImage, RgbaImage};
use moxcms::{
    Chromaticity, CicpColorPrimaries, CicpProfile, ColorPrimaries, ColorProfile, DataColorSpace,
    Layout, MatrixCoefficients, ProfileText, ToneReprCurve, TransferCharacteristics,
    Transform8BitExecutor, TransformOptions, XyY,
};
use std::collections::HashMap;
use std::panic::catch_unwind;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use super::change::{Change, ChangeKind};

/// What a file says about its colours.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Profile {
    Icc(Vec<u8>),
    /// Primaries and transfer function (ITU-T H.273).
    Cicp(u8, u8),
    /// The encoding exponent, and white, red, green and blue as x and y.
    Gamma(f32, Option<[[f32; 2]; 4]>),
}

/// A gamma this near to sRGB's 1/2.2, as a factor, is sRGB's curve: browsers do the same.
const GAMMA_TOLERANCE: f32 = 0.05;
/// A profile that moves no channel by more than this is one of the many variants of sRGB.
const SRGB_TOLERANCE: u8 = 3;
/// Transforms that are kept: a data set has few profiles.
const KEPT: usize = 64;

impl Profile {
    pub(super) fn of_png(info: &png::Info<'_>) -> Option<Self> {
        if let Some(cicp) = info.coding_independent_code_points {
            return Some(Self::Cicp(cicp.color_primaries, cicp.transfer_function));
        }
        if let Some(icc) = &info.icc_profile {
            return Some(Self::Icc(icc.to_vec()));
        }
        if info.srgb.is_some() {
            return None;
        }
        let gamma = info.gama_chunk?.into_value();
        let chromaticities = info.chrm_chunk.map(|it| {
            [it.white, it.red, it.green, it.blue].map(|(x, y)| [x.into_value(), y.into_value()])
        });
        Some(Self::Gamma(gamma, chromaticities))
    }

    fn read(&self) -> Result<ColorProfile, String> {
        match self {
            Self::Icc(bytes) => ColorProfile::new_from_slice(bytes)
                .map_err(|error| format!("the ICC profile cannot be read: {error}")),
            Self::Cicp(primaries, transfer) => of_cicp(*primaries, *transfer),
            Self::Gamma(gamma, chromaticities) => of_gamma(*gamma, *chromaticities),
        }
    }

    fn key(&self) -> Bytes {
        match self {
            Self::Icc(bytes) => Bytes::copy_from_slice(bytes),
            other => Bytes::from(format!("{other:?}")),
        }
    }

    /// Its name for people.
    fn name(&self, profile: &ColorProfile) -> String {
        let text = match (self, &profile.description) {
            (Self::Cicp(primaries, transfer), _) => return format!("cICP {primaries}/{transfer}"),
            (Self::Gamma(gamma, _), _) => return format!("gAMA {gamma}"),
            (Self::Icc(_), Some(ProfileText::PlainString(text))) => text.clone(),
            (Self::Icc(_), Some(ProfileText::Description(text))) => text.ascii_string.clone(),
            (Self::Icc(_), Some(ProfileText::Localizable(texts))) => {
                texts.first().map(|it| it.value.clone()).unwrap_or_default()
            }
            (Self::Icc(_), None) => String::new(),
        };
        let text: String = text
            .chars()
            .filter(|it| !it.is_control())
            .take(60)
            .collect();
        if text.trim().is_empty() {
            return "an ICC profile without a name".to_owned();
        }
        text.trim().to_owned()
    }
}

fn of_cicp(primaries: u8, transfer: u8) -> Result<ColorProfile, String> {
    let unknown = || format!("cICP {primaries}/{transfer} is not known");
    let color_primaries = CicpColorPrimaries::try_from(primaries).map_err(|_| unknown())?;
    let transfer_characteristics =
        TransferCharacteristics::try_from(transfer).map_err(|_| unknown())?;
    if matches!(
        transfer_characteristics,
        TransferCharacteristics::Smpte2084 | TransferCharacteristics::Hlg
    ) {
        return Err(format!("cICP {primaries}/{transfer} is high dynamic range"));
    }
    let cicp = CicpProfile {
        color_primaries,
        transfer_characteristics,
        matrix_coefficients: MatrixCoefficients::Bt709,
        full_range: true,
    };
    let profile = ColorProfile::new_from_cicp(cicp);
    if !profile.is_matrix_shaper() {
        return Err(unknown());
    }
    Ok(profile)
}

fn of_gamma(gamma: f32, chromaticities: Option<[[f32; 2]; 4]>) -> Result<ColorProfile, String> {
    let mut profile = ColorProfile::new_srgb();
    if !(0.01..=10.0).contains(&gamma) {
        return Err(format!("gAMA is {gamma}"));
    }
    if let Some([white, red, green, blue]) = chromaticities {
        let point = |[x, y]: [f32; 2]| Chromaticity::new(x, y);
        let primaries = ColorPrimaries {
            red: point(red),
            green: point(green),
            blue: point(blue),
        };
        let white = XyY::new(f64::from(white[0]), f64::from(white[1]), 1.0);
        profile.update_rgb_colorimetry(white, primaries);
    }
    if (gamma * 2.2 - 1.0).abs() > GAMMA_TOLERANCE {
        let curve = ToneReprCurve::Parametric(vec![1.0 / gamma]);
        profile.cicp = None;
        profile.red_trc = Some(curve.clone());
        profile.green_trc = Some(curve.clone());
        profile.blue_trc = Some(curve);
    }
    Ok(profile)
}

/// What a profile does to pixels.
#[derive(Clone)]
enum Effect {
    /// It is sRGB.
    Nothing,
    /// From RGB, from RGBA (alpha stays).
    Rgb(Arc<Transform8BitExecutor>, Arc<Transform8BitExecutor>),
    /// From grey to RGB.
    Gray(Arc<Transform8BitExecutor>),
}

/// The effect and the name of a profile, or why it cannot be applied.
type Known = Result<(Effect, String), String>;

static KNOWN: LazyLock<Mutex<HashMap<Bytes, Known>>> = LazyLock::new(Mutex::default);

fn known(profile: &Profile) -> Known {
    let key = profile.key();
    let lock = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = lock().get(&key) {
        return known.clone();
    }
    // The profile may be a stranger's.
    let known = catch_unwind(|| effect(profile));
    let known = known.unwrap_or_else(|_| Err("the profile is damaged".to_owned()));
    let mut all = lock();
    if all.len() >= KEPT {
        all.clear();
    }
    all.insert(key, known.clone());
    known
}

fn effect(profile: &Profile) -> Known {
    let read = profile.read()?;
    let name = profile.name(&read);
    let srgb = ColorProfile::new_srgb();
    let transform = |from: Layout, to: Layout| {
        let made = read.create_transform_8bit(from, &srgb, to, TransformOptions::default());
        made.map_err(|error| format!("{name}: {error}"))
    };
    let effect = match read.color_space {
        DataColorSpace::Rgb => {
            let rgb = transform(Layout::Rgb, Layout::Rgb)?;
            if is_identity(rgb.as_ref(), 3) {
                Effect::Nothing
            } else {
                Effect::Rgb(rgb, transform(Layout::Rgba, Layout::Rgba)?)
            }
        }
        DataColorSpace::Gray => {
            let gray = transform(Layout::Gray, Layout::Rgb)?;
            if is_identity(gray.as_ref(), 1) {
                Effect::Nothing
            } else {
                Effect::Gray(gray)
            }
        }
        other => {
            return Err(format!(
                "{name}: a profile for {other:?} does not fit the pixels"
            ));
        }
    };
    Ok((effect, name))
}

/// Whether a transform to RGB leaves a lattice of colours as they are.
fn is_identity(transform: &Transform8BitExecutor, channels: usize) -> bool {
    let steps: Vec<u8> = (0..=15).map(|it| it * 17).collect();
    let colours: Vec<[u8; 3]> = if channels == 1 {
        (0..=u8::MAX).map(|it| [it; 3]).collect()
    } else {
        let (r, g, b) = (&steps, &steps, &steps);
        let pairs = r.iter().flat_map(|r| g.iter().map(move |g| (*r, *g)));
        pairs
            .flat_map(|(r, g)| b.iter().map(move |b| [r, g, *b]))
            .collect()
    };
    let source: Vec<u8> = colours
        .iter()
        .flat_map(|it| it[..channels].to_vec())
        .collect();
    let mut shown = vec![0; colours.len() * 3];
    let done = transform.transform(&source, &mut shown);
    let same = |(shown, source): (&u8, &u8)| shown.abs_diff(*source) <= SRGB_TOLERANCE;
    done.is_ok() && shown.iter().zip(colours.as_flattened()).all(same)
}

/// Converts an image of 8 bits per channel. Returns what was done; None: it was sRGB already.
pub(super) fn to_srgb(image: &mut DynamicImage, profile: &Profile) -> Option<Change> {
    let ignored = |reason: String| Some(Change::new(ChangeKind::ProfileIgnored, reason));
    let (effect, name) = match known(profile) {
        Ok(known) => known,
        Err(reason) => return ignored(reason),
    };
    let (width, height) = (image.width(), image.height());
    let mut rgb = RgbImage::new(width, height);
    let shown = match effect {
        Effect::Nothing => return None,
        Effect::Rgb(_, transform) if image.color().has_alpha() => {
            let mut rgba = RgbaImage::new(width, height);
            let done = transform.transform(&image.to_rgba8(), &mut rgba);
            done.map(|()| rgba.into())
        }
        Effect::Rgb(transform, _) => {
            let done = transform.transform(&image.to_rgb8(), &mut rgb);
            done.map(|()| rgb.into())
        }
        Effect::Gray(_) if image.color().has_color() => {
            return ignored(format!("{name}: a profile for grey does not fit colours"));
        }
        Effect::Gray(transform) => {
            let done = transform.transform(&image.to_luma8(), &mut rgb);
            done.map(|()| {
                if image.color().has_alpha() {
                    with_alpha(&rgb, image).into()
                } else {
                    rgb.into()
                }
            })
        }
    };
    match shown {
        Ok(shown) => {
            *image = shown;
            Some(Change::new(ChangeKind::Profile, name))
        }
        Err(error) => ignored(format!("{name}: {error}")),
    }
}

/// The colours of one image with the alpha channel of another.
fn with_alpha(colours: &RgbImage, alpha: &DynamicImage) -> RgbaImage {
    let mut out = alpha.to_rgba8();
    for (out, colour) in out.pixels_mut().zip(colours.pixels()) {
        out.0[..3].copy_from_slice(&colour.0);
    }
    out
}
