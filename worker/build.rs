//! Names the commit in the program.

include!("../deploy/setup/commit.rs");

fn main() {
    commit();
}
