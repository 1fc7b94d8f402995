//! Parameter counts at the size of Stable Diffusion 1.5 (notes 3.1, 3.6, 5.1, 5.2), computed from
//! shapes without storage.
#![allow(clippy::unwrap_used)]

use model::autoencoder::Autoencoder;
use model::parameter::Parameters;
use model::retrinet::RetrievalBlock;
use model::text::TextEncoder;
use model::unet::UNet;
use proto::size::named;
use proto::spec::{Attend, Retrieval, RetrievalTime};

fn count(build: impl FnOnce(&model::parameter::Scope<'_>)) -> u64 {
    let parameters = Parameters::shapes();
    build(&parameters.root());
    parameters.count()
}

#[test]
fn sd15_has_the_known_numbers() {
    let (unet, autoencoder, text) = named("sd15").unwrap();
    assert_eq!(
        count(|scope| drop(UNet::new(scope, &(&unet).into()))),
        859_520_964
    );
    assert_eq!(
        count(|scope| drop(Autoencoder::new(scope, &(&autoencoder).into()))),
        83_653_863
    );
    assert_eq!(
        count(|scope| drop(TextEncoder::new(scope, &(&text).into()))),
        123_060_480
    );
}

#[test]
fn sd15_retrinet_trains_what_the_notes_say() {
    let (unet, _, _) = named("sd15").unwrap();
    let parameters = Parameters::shapes();
    let _ = RetrievalBlock::new(&parameters.root(), &(&unet).into(), Retrieval::default());
    let _ = UNet::new(&parameters.root().sub("unet"), &(&unet).into());
    let sum = |prefix: &str| -> i64 {
        parameters
            .under(prefix)
            .values()
            .map(|t| t.size().iter().product::<i64>())
            .sum()
    };
    assert_eq!(sum("retrieval."), 249_624_320);
    assert_eq!(sum("unet.input_blocks."), 249_624_320);
    assert_eq!(sum("unet.middle_block."), 97_038_080);
    assert_eq!(sum("unet.time_embed."), 2_050_560);
    assert_eq!(sum("zero_convs."), 9_840_000);
    let decoder = sum("unet.output_blocks.") + sum("unet.out.");
    assert_eq!(decoder, 510_808_004);
    let lock_b = sum("cross_attention.") + sum("zero_convs.");
    assert_eq!(lock_b, 49_190_400);
    assert_eq!(lock_b + sum("retrieval."), 298_814_720);
    assert_eq!(lock_b + sum("retrieval.") + decoder, 809_622_724);
}

/// Notes 3.5: with four cross-attentions instead of twelve, they have 15.2 million parameters.
#[test]
fn a_cross_attention_for_each_level_is_a_third() {
    let (unet, _, _) = named("sd15").unwrap();
    let retrieval = Retrieval {
        attend: Attend::EveryLevel,
        time: RetrievalTime::Target,
    };
    let parameters = Parameters::shapes();
    let _ = RetrievalBlock::new(&parameters.root(), &(&unet).into(), retrieval);
    let attentions = parameters.under("cross_attention.");
    let exists = |block: &str| attentions.keys().any(|name| name.starts_with(block));
    assert!(
        [2, 5, 8, 11]
            .iter()
            .all(|block| exists(&format!("{block}.")))
    );
    assert!(
        [0, 1, 3, 4, 6, 7, 9, 10]
            .iter()
            .all(|block| !exists(&format!("{block}.")))
    );
    let values: i64 = attentions
        .values()
        .map(|t| t.size().iter().product::<i64>())
        .sum();
    let expected = |width: i64| 4 * width * width + 3 * width;
    assert_eq!(values, expected(320) + expected(640) + 2 * expected(1280));
}

#[test]
fn the_small_base_fits_into_20_megabytes_of_fp16() {
    let (unet, autoencoder, text) = named("small").unwrap();
    let values = count(|scope| {
        let _ = UNet::new(&scope.sub("unet"), &(&unet).into());
        let _ = Autoencoder::new(&scope.sub("autoencoder"), &(&autoencoder).into());
        let _ = TextEncoder::new(&scope.sub("text_encoder"), &(&text).into());
    });
    assert!(2 * values < 19_800_000, "{values} values");
}
