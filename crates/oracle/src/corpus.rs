//! The compiled programs of the repository and what they are run with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bpfarray_vm::elf::{LoadError, Object};
use pcap_file::pcap::PcapReader;

use crate::inputs::{self, Input, Run};
use crate::vectors::testdata;

/// Shorter packets are refused by BPF_PROG_TEST_RUN: they have no complete Ethernet header.
const ETH_HLEN: usize = 14;

/// Examples with the captures they are run with.
const EXAMPLES: &[(&str, &str, &str)] = &[("packet_count", "count_packets", "traffic.pcap")];

/// Objects by name, and the runs of their programs.
#[derive(Debug)]
pub struct Corpus {
    /// Objects, by file name without `.bpf.o`.
    pub objects: BTreeMap<String, Object>,
    /// Runs, in the order of the inputs file; examples last.
    pub runs: Vec<Run>,
}

/// Why there is no corpus.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("{path}: {error}")]
    File { path: PathBuf, error: std::io::Error },
    #[error(transparent)]
    Inputs(#[from] inputs::Error),
    #[error("{path}: {error}")]
    Object { path: PathBuf, error: LoadError },
    #[error("{path}: {error}")]
    Capture { path: PathBuf, error: pcap_file::PcapError },
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| Error::File { path: path.into(), error })
}

impl Corpus {
    /// Reads the test programs, the examples and their inputs.
    ///
    /// # Errors
    /// For the first file that cannot be read or is not what it should be.
    pub fn read() -> Result<Self, Error> {
        let progs = testdata().join("progs");
        let examples = testdata().join("../examples");
        let mut runs = inputs::parse(&String::from_utf8_lossy(&read(&progs.join("inputs"))?))?;
        for &(object, program, capture) in EXAMPLES {
            let inputs = packets(&examples.join(capture))?;
            let (object, program) = (object.into(), program.into());
            runs.push(Run { object, program, inputs, capture: Some(capture.into()) });
        }
        let mut objects = BTreeMap::new();
        for run in &runs {
            if !objects.contains_key(&run.object) {
                let dir = if run.capture.is_some() { &examples } else { &progs };
                objects.insert(run.object.clone(), read_object(dir, &run.object)?);
            }
        }
        Ok(Self { objects, runs })
    }
}

/// The object file of a directory that has this name, without `.bpf.o`.
pub(crate) fn read_object(dir: &Path, name: &str) -> Result<Object, Error> {
    let path = dir.join(format!("{name}.bpf.o"));
    Object::parse(&read(&path)?).map_err(|error| Error::Object { path, error })
}

/// The packets of a capture file that are long enough to run.
fn packets(path: &Path) -> Result<Vec<Input>, Error> {
    let error = |error| Error::Capture { path: path.into(), error };
    let bytes = read(path)?;
    let mut reader = PcapReader::new(bytes.as_slice()).map_err(error)?;
    let mut inputs = Vec::new();
    while let Some(packet) = reader.next_packet() {
        let data = packet.map_err(error)?.data.into_owned();
        if data.len() >= ETH_HLEN {
            inputs.push(Input { name: inputs.len().to_string(), data: Some(data), ctx: None });
        }
    }
    Ok(inputs)
}
