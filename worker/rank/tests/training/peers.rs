//! The paper's peers train to the same bits at every world size, and generate images from their
//! checkpoints.

use crate::world::{World, last_digest, world_of};
use proto::id::{Generation, Step};
use proto::message::{Assignment, RankPhase};
use proto::sample::SampleWork;

fn job(world: &World, peer: (&str, &str), (generation, ranks): (u64, u32)) -> Assignment {
    let (architecture, model) = peer;
    let text = world
        .assignment
        .job_toml
        .replace("references = 2\n", "")
        .replace("\"retrinet\"", &format!("\"{architecture}\"\n{model}"))
        .replace("threads = 1", "threads = 1\nreduction = \"exact\"");
    Assignment {
        generation: Generation(generation),
        run: world_of(ranks),
        job_toml: text,
        ..world.assignment.clone()
    }
}

#[test]
fn each_peer_trains_to_the_same_bits_at_every_world_size_and_generates_images() {
    let world = World::new();
    let peers = [
        ("controlnet", ""),
        ("ip-adapter", ""),
        ("fastcomposer", ""),
        ("kandinsky-prior", ""),
        ("kandinsky-decoder", ""),
        ("kandinsky-decoder", "variant = \"unclip-sd15\""),
    ];
    for (number, peer) in (0..).zip(peers) {
        let one = job(&world, peer, (2 * number + 1, 1));
        let alone = world.run(&one);
        assert_eq!(
            alone[0].phase,
            RankPhase::Finished,
            "{peer:?} {:?}",
            alone[0]
        );
        let pair = world.run(&job(&world, peer, (2 * number + 2, 2)));
        let losses = |report: &proto::message::RankReport| -> Vec<u64> {
            let steps = report.steps.iter();
            steps.map(|step| step.loss.to_bits()).collect()
        };
        assert_eq!(losses(&alone[0]), losses(&pair[0]), "{peer:?}");
        assert_eq!(last_digest(&alone[0]), last_digest(&pair[0]), "{peer:?}");
        if peer.0 == "kandinsky-prior" {
            continue;
        }
        let checkpoint = world.commit(&one, &alone, Step(4));
        let mut work = SampleWork::of(one.job.clone());
        (work.count, work.steps, work.guidance) = (2, 3, 2.0);
        let name = format!("tiny-1-sample-{number}");
        let (_, images) = world.images(&one, &name, &work, Some(checkpoint));
        assert_eq!(images.len(), 2, "{peer:?}");
        assert!(images.iter().all(|it| it.starts_with(b"\x89PNG")));
        assert_ne!(images[0], images[1]);
    }
}
