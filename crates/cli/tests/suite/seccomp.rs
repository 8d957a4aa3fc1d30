//! Programs without the libc that a library could take the place of, under `bpfarray exec --seccomp`.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::exec::{is_installed, library, objects, pinned_maps, text};
use super::*;

const TERM: i32 = 15;

fn supervised(objects: &Path, arguments: &[&str]) -> Command {
    let mut command = command("exec --seccomp --root");
    command.arg(objects).arg("--").args(arguments);
    command
}

/// Whether the kernel lets calls be answered here. Some containers don't.
pub(super) fn is_possible() -> bool {
    let path = objects("possible");
    let output = supervised(&path, &["true"]).output().unwrap();
    let _ = std::fs::remove_dir_all(path);
    if !output.status.success() {
        eprintln!("SKIPPED: {}", text(&output).1);
    }
    output.status.success()
}

/// A program of the sources beside these tests, compiled.
pub(super) fn compiled(name: &str, flags: &[&str]) -> Option<String> {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("program_{name}"));
    let built = Command::new("cc")
        .args(["-O1", "-o"])
        .arg(&program)
        .arg(format!("crates/cli/tests/data/{name}.c"))
        .args(flags)
        .current_dir(root())
        .stderr(Stdio::null())
        .status();
    if !built.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: no C compiler, or no static libc");
        return None;
    }
    program.into_os_string().into_string().ok()
}

#[test]
fn a_static_program_gets_the_kernels_answers() {
    let Some(program) = compiled("static", &["-static", "-pthread"]) else { return };
    if !is_possible() {
        return;
    }
    let path = objects("static");
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).to_str().unwrap();
    let output = supervised(&path, &[&program, directory]).output().unwrap();
    let (found, errors) = text(&output);
    assert!(output.status.success() && errors.is_empty(), "{found}{errors}");
    let (as_kernel, only_here) = found.split_once("only here\n").unwrap();
    let expected = "\
bpffs 0xcafe4a11 mount 0 elsewhere -1 1
mkdir 0
pin 0 again -17 stat 0 get 1 open 1 0xcafe4a11 unlink 0 get -2 rmdir 0
file 1 0 mapped 1 unlink 0
map mapped 0 1 too long 22
";
    assert!(only_here.starts_with(expected), "{only_here}");
    if cfg!(target_arch = "x86_64") {
        assert!(only_here.contains("x32 -1 38 i386 -38\n"), "{only_here}");
    }
    let expected = "create 1\nupdate 0 -7\nlookup 0 42\nthreads 2000\nchild 3 77\nits map is gone with it -2\n";
    assert!(as_kernel.starts_with(expected), "{as_kernel}");
    // A program that looks afterwards finds nothing.
    let output = supervised(&path, &[&program]).output().unwrap();
    assert_eq!(text(&output).0, as_kernel);
    std::fs::remove_dir_all(path).unwrap();
    let (kernel, _) = text(&Command::new(&program).output().unwrap());
    if kernel.starts_with("create 1") {
        assert_eq!(as_kernel, kernel);
    } else {
        eprintln!("SKIPPED: the comparison with the live kernel, for it refuses maps");
    }
}

#[test]
fn a_program_without_libc_is_answered_and_traced() {
    let flags = ["-nostdlib", "-static", "-fno-stack-protector"];
    let Some(program) = compiled("raw", &flags) else { return };
    if !is_possible() {
        return;
    }
    let path = objects("raw");
    let output = supervised(&path, &[&program]).output().unwrap();
    assert_eq!(output.status.code(), Some(42));
    // As many descriptors as it has: the map is made, and goes again.
    let script = format!("ulimit -n 3; exec {program}");
    assert_eq!(supervised(&path, &["sh", "-c", &script]).status().unwrap().code(), Some(1));
    let mut traced = command("exec --seccomp --trace --root");
    let output = traced.arg(&path).args(["--", &program]).output().unwrap();
    assert_eq!(output.status.code(), Some(42));
    let lines: Vec<_> = output.stderr.split(|&byte| byte == b'\n').collect();
    let start = "bpf(BPF_MAP_CREATE, {map_type=BPF_MAP_TYPE_ARRAY, key_size=4, value_size=8, max_entries=4}, 16) = ";
    let calls = [start, "bpf(BPF_MAP_UPDATE_ELEM, {map_fd=", "bpf(BPF_MAP_LOOKUP_ELEM, {map_fd="];
    assert_eq!(lines.len(), calls.len() + 1, "{}", text(&output).1);
    for (line, call) in lines.iter().zip(calls) {
        assert!(line.starts_with(call.as_bytes()), "{}", text(&output).1);
    }
    std::fs::remove_dir_all(path).unwrap();
}

#[test]
fn a_program_in_go_counts_on_all_its_threads() {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("program_go");
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("go");
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg("crates/cli/tests/data/client.go")
        .env("GOCACHE", &cache)
        .env("GOFLAGS", "-mod=mod")
        .env("CGO_ENABLED", "0")
        .current_dir(root())
        .status();
    if !built.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: no Go");
        return;
    }
    if !is_possible() {
        return;
    }
    let path = objects("go");
    let output = supervised(&path, &[program.to_str().unwrap()]).output().unwrap();
    let (found, errors) = text(&output);
    let expected = "\
create true <nil>
counted 16 4800
past the end no such file or directory
statfs <nil> true
pin <nil>
stat <nil>
get true <nil> <nil> 300
unpin <nil>
get no such file or directory
";
    assert_eq!((found.as_str(), errors.as_str()), (expected, ""));
    std::fs::remove_dir_all(path).unwrap();
}

#[test]
fn programs_are_loaded_and_run_as_through_the_library() {
    let Some(_) = library().filter(|_| is_installed("python3") && is_possible()) else {
        eprintln!("SKIPPED: no python3, or no library");
        return;
    };
    let run = |how: &str| {
        let path = objects(&format!("programs{how}"));
        let mut command = command(&format!("exec {how} --root"));
        command.arg(&path).args(["--", "python3", "crates/cli/tests/data/programs.py"]);
        let output = command.output().unwrap();
        std::fs::remove_dir_all(path).unwrap();
        let (found, errors) = text(&output);
        assert!(output.status.success() && errors.is_empty(), "{found}{errors}");
        found
    };
    assert_eq!(run("--seccomp"), run(""));
}

#[test]
fn a_client_gets_the_same_answers_as_through_the_library() {
    let Some(_) = library().filter(|_| is_installed("python3") && is_possible()) else {
        eprintln!("SKIPPED: no python3, or no library");
        return;
    };
    let mut arguments = vec!["python3", "crates/cli/tests/data/client.py"];
    if is_installed("bpftool") {
        arguments.push("bpftool");
    }
    let run = |how: &str| {
        let path = objects(&format!("same{how}"));
        let mut command = command(&format!("exec {how} --root"));
        let output = command.arg(&path).arg("--").args(&arguments).output().unwrap();
        std::fs::remove_dir_all(path).unwrap();
        let (found, errors) = text(&output);
        assert!(output.status.success() && errors.is_empty(), "{found}{errors}");
        // Mappings are what cannot be done.
        let (mapped, others): (Vec<_>, Vec<_>) = found
            .lines()
            .map(str::to_owned)
            .partition(|line| line.contains("mapped") || line.starts_with("through"));
        (mapped, others)
    };
    let ((mapped, here), (_, with_library)) = (run("--seccomp"), run(""));
    assert_eq!(here, with_library);
    assert!(here.len() > 15, "{here:?}");
    let no_device = 19;
    assert_eq!(mapped, [format!("not mapped {no_device} 0")]);
}

#[test]
fn bpftool_makes_and_finds_pinned_maps_without_the_library() {
    if !is_installed("bpftool") || !is_possible() {
        eprintln!("SKIPPED: no bpftool");
        return;
    }
    pinned_maps("pinned_seccomp", &["--seccomp", "--"]);
}

#[test]
fn the_program_and_this_command_end_alike() {
    if !is_possible() {
        return;
    }
    let path = objects("end");
    let status = |script: &str| supervised(&path, &["sh", "-c", script]).status().unwrap();
    assert_eq!(status("exit 7").code(), Some(7));
    assert_eq!(status("kill -TERM $$").signal(), Some(TERM));
    assert_eq!(status("trap 'exit 5' TERM; kill -TERM $$; exit 6").code(), Some(5));
    // Signals are not held in the program: the mask is empty.
    assert_eq!(status("grep -q 'SigBlk:.*0000000000000000' /proc/self/status").code(), Some(0));
    // What the program leaves running is waited for.
    let start = Instant::now();
    assert_eq!(status("sleep 0.3 & exit 3").code(), Some(3));
    assert!(start.elapsed() >= Duration::from_millis(300));
    std::fs::remove_dir_all(path).unwrap();
}

#[test]
fn signals_are_handed_on_to_the_program() {
    if !is_possible() {
        return;
    }
    let path = objects("signal");
    let ready = Path::new(env!("CARGO_TARGET_TMPDIR")).join("seccomp_ready");
    let _ = std::fs::remove_file(&ready);
    let script = format!(
        "trap 'exit 9' TERM; touch {}; while true; do sleep 0.01; done",
        ready.to_str().unwrap()
    );
    let mut child = supervised(&path, &["sh", "-c", &script]).spawn().unwrap();
    let start = Instant::now();
    while !ready.exists() && start.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let sent = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    assert_eq!(child.wait().unwrap().code(), Some(9));
    std::fs::remove_dir_all(path).unwrap();
}

#[test]
fn a_program_that_is_ended_in_a_call_makes_nothing() {
    let flags = ["-nostdlib", "-static", "-fno-stack-protector"];
    let Some(program) = compiled("raw", &flags).filter(|_| is_possible()) else { return };
    let path = objects("ended");
    // Makes the root directory.
    assert_eq!(supervised(&path, &[&program]).status().unwrap().code(), Some(42));
    let maps = || std::fs::read_dir(path.join("bpf-map")).unwrap().count();
    let before = maps();
    // Ids are given out under this lock.
    let ids = std::fs::File::open(path.join("ids")).unwrap();
    rustix::fs::flock(&ids, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut child = supervised(&path, &[&program]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "it waits for the lock");
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(TERM));
    assert_eq!(maps(), before);
    std::fs::remove_dir_all(path).unwrap();
}

#[test]
fn what_cannot_be_answered_is_not_run() {
    if !is_possible() {
        return;
    }
    let path = objects("not_run");
    let refused = |arguments: &[&str]| {
        let output = supervised(&path, arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        text(&output).1
    };
    assert!(refused(&["no_such_program"]).contains("no such program in PATH"));
    assert!(refused(&["/no/such/program"]).contains("/no/such/program: No such file"));
    assert!(refused(&[&temporary("no_program", b"")]).contains("Permission denied"));
    let own = env!("CARGO_BIN_EXE_bpfarray");
    let inner = path.to_str().unwrap();
    let twice = refused(&[own, "exec", "--seccomp", "--root", inner, "--", "true"]);
    assert!(twice.contains("somebody else answers"), "{twice}");
    // Only who may read a program may look into its memory.
    let unreadable = temporary("unreadable", &std::fs::read("/bin/true").unwrap());
    std::fs::set_permissions(&unreadable, PermissionsExt::from_mode(0o111)).unwrap();
    if std::fs::read(&unreadable).is_err() {
        let text = refused(&[&unreadable]);
        assert!(text.contains("its memory cannot be accessed"), "{text}");
    }
    std::fs::remove_file(unreadable).unwrap();
    std::fs::remove_dir_all(path).unwrap();
}
