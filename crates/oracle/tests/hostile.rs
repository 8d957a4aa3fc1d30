//! Programs with mistakes, under a monitor that trusts neither engine. They run in processes of their own, for the monitor
//! must be alone in its process, and a wrong access may end it.

use std::path::Path;

use oracle::hostile::campaign::{self, Error};

#[test]
fn programs_with_mistakes_change_nothing_but_what_they_were_given() -> Result<(), Error> {
    let oracle = Path::new(env!("CARGO_BIN_EXE_oracle"));
    let runs = campaign::run_in_processes(oracle, (1, 3_000), false)?;
    // Most of them do something, and many of those something wrong.
    assert!(runs.programs > 1_500 && runs.finished > 2_000 && runs.faults > 1_000, "{runs}");
    Ok(())
}
