//! The command as people and programs use it.
#![allow(clippy::unwrap_used, clippy::panic)]

mod bad_input;
mod bpftool;
mod exec;
mod exec_links;
mod exec_programs;
mod mutation;
mod rings;
mod run;
mod seccomp;
mod show;
mod verify;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bpfarray_cli::{Cli, Error, Parser, execute};
use serde_json::Value;

const OBJECT: &str = "examples/packet_count.bpf.o";
const PCAP: &str = "examples/traffic.pcap";

/// The directory that the paths in these tests are relative to.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn file(path: &str) -> Vec<u8> {
    std::fs::read(root().join(path)).unwrap()
}

/// A file of this content, by a name that no other test uses.
fn temporary(name: &str, content: &[u8]) -> String {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, content).unwrap();
    path.into_os_string().into_string().unwrap()
}

/// The binary, with arguments separated by blanks.
fn command(args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bpfarray"));
    command.current_dir(root()).args(args.split_whitespace());
    command
}

/// What the binary prints when all goes well.
fn stdout(args: &str) -> String {
    let Output { status, stdout, stderr } = command(args).output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""), "bpfarray {args}");
    String::from_utf8(stdout).unwrap()
}

fn json(args: &str) -> Value {
    serde_json::from_str(&stdout(args)).unwrap()
}

/// The line the binary prints when it fails, without the `bpfarray: ` that is before it.
fn error(args: &str) -> String {
    let Output { status, stdout, stderr } = command(args).output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "bpfarray {args}: {stderr}");
    assert_eq!(stdout, b"", "bpfarray {args}");
    assert_eq!(stderr.matches('\n').count(), 1, "bpfarray {args}: {stderr}");
    stderr.trim_end().strip_prefix("bpfarray: ").unwrap().to_owned()
}

/// What the binary does, in this process.
fn in_process(args: &[&str]) -> Result<String, Error> {
    let mut out = Vec::new();
    execute(&Cli::try_parse_from(args).unwrap(), &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}
