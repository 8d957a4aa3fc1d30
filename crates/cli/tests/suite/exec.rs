//! Programs written for Linux BPF, under `bpfarray exec`.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use super::*;

/// The library, which Cargo does not build for the tests of other packages.
pub(super) fn library() -> Option<PathBuf> {
    let binary = Path::new(env!("CARGO_BIN_EXE_bpfarray"));
    let library = binary.with_file_name("libbpfarray_preload.so");
    // Where this is run without Cargo, it was built before.
    let target = binary.parent()?.parent()?;
    let profile = match binary.parent()?.file_name()?.to_str()? {
        "debug" => "dev",
        name => name,
    };
    let built = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--locked",
            "--package",
            "bpfarray-preload",
            "--profile",
            profile,
        ])
        .arg("--target-dir")
        .arg(target)
        .current_dir(root())
        .stderr(Stdio::null())
        .status();
    let is_there = built.is_ok_and(|status| status.success()) || library.exists();
    is_there.then_some(library)
}

pub(super) fn is_installed(program: &str) -> bool {
    let mut version = Command::new(program);
    version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    version.status().is_ok_and(|status| status.success())
}

/// A root directory for one test, which must not lie in a directory that others own.
pub(super) fn objects(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("bpfarray-exec-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    path
}

pub(super) fn exec(objects: &Path, arguments: &[&str]) -> Command {
    let mut command = command("exec --root");
    command.arg(objects).args(arguments);
    command
}

pub(super) fn text(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_client_of_linux_bpf_gets_the_kernels_answers() {
    let Some(_) = library().filter(|_| is_installed("python3")) else {
        eprintln!("SKIPPED: no python3, or no library");
        return;
    };
    let client = "crates/cli/tests/data/client.py";
    let mut arguments = vec!["python3", client];
    if is_installed("bpftool") {
        arguments.push("bpftool");
    } else {
        eprintln!("SKIPPED in part: no bpftool");
    }
    let path = objects("client");
    let here = exec(&path, &[&["--"], &arguments[..]].concat()).output().unwrap();
    let (found, errors) = text(&here);
    assert!(here.status.success() && errors.is_empty(), "{found}{errors}");
    let count = found.lines().count();
    assert!(count > 15, "{found}");
    let names: Vec<_> = std::fs::read_dir(path.join("bpf-map")).unwrap().collect();
    assert_eq!(names.len(), 2, "files of maps that nobody holds are there until somebody looks");
    std::fs::remove_dir_all(path).unwrap();
    // Only a privileged process gets maps from the kernel.
    let kernel =
        Command::new("python3").args(&arguments[1..]).current_dir(root()).output().unwrap();
    let (expected, _) = text(&kernel);
    if expected.starts_with("created True True") {
        assert_eq!(found, expected);
    } else {
        eprintln!("SKIPPED: the comparison with the live kernel, for it refuses maps");
        assert!(found.starts_with("created True True -22 -22 -22\nupdate 0 -7 -22\n"), "{found}");
    }
}

#[test]
fn a_program_on_libbpf_gets_the_kernels_answers() {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("client");
    let built = Command::new("cc")
        .args(["-O1", "-o"])
        .arg(&program)
        .args(["crates/cli/tests/data/client.c", "-lbpf"])
        .current_dir(root())
        .stderr(Stdio::null())
        .status();
    if library().is_none() || !built.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: no C compiler with libbpf, or no library");
        return;
    }
    let path = objects("libbpf");
    let here = exec(&path, &["--", program.to_str().unwrap()]).output().unwrap();
    let (found, errors) = text(&here);
    assert!(here.status.success() && errors.is_empty(), "{found}{errors}");
    assert!(found.contains("lookup 0 42\n") && found.contains("keys 1000\n"), "{found}");
    std::fs::remove_dir_all(path).unwrap();
    let (expected, _) = text(&Command::new(&program).output().unwrap());
    if expected.contains("create 1") {
        assert_eq!(found, expected);
    } else {
        eprintln!("SKIPPED: the comparison with the live kernel, for it refuses maps");
    }
}

#[test]
fn bpftool_makes_and_finds_pinned_maps() {
    let Some(_) = library().filter(|_| is_installed("bpftool")) else {
        eprintln!("SKIPPED: no bpftool, or no library");
        return;
    };
    pinned_maps("pinned", &["--"]);
}

/// What bpftool does with names, under `bpfarray exec` with these options.
pub(super) fn pinned_maps(name: &str, options: &[&str]) {
    let path = objects(name);
    let run = |arguments: &str| {
        let words: Vec<_> = options.iter().copied().chain(arguments.split_whitespace()).collect();
        let output = exec(&path, &words).output().unwrap();
        let (found, errors) = text(&output);
        (output.status.success(), found + &errors)
    };
    let ok = |text: &str| (true, text.to_owned());
    let create = "bpftool map create /sys/fs/bpf/m type array key 4 value 8 entries 2 name m";
    assert_eq!(run(create), ok(""));
    assert!(!run(create).0, "the name is taken");
    let update = "bpftool map update pinned /sys/fs/bpf/m key 1 0 0 0 value 1 2 3 4 5 6 7 8";
    assert_eq!(run(update), ok(""));
    let key = "key: 01 00 00 00  value: 01 02 03 04 05 06 07 08\n";
    assert_eq!(run("bpftool map lookup id 1 key 1 0 0 0"), ok(key));
    assert_eq!(run("ls /sys/fs/bpf"), ok("m\n"));
    assert!(!Path::new("/sys/fs/bpf/m").exists());
    assert_eq!(run("bpftool map pin id 1 /sys/fs/bpf/n"), ok(""));
    assert_eq!(run("rm /sys/fs/bpf/m"), ok(""));
    assert!(run("bpftool -j map show pinned /sys/fs/bpf/n").0);
    assert_eq!(run("bpftool map freeze pinned /sys/fs/bpf/n"), ok(""));
    assert!(!run("bpftool map update id 1 key 1 0 0 0 value 0 0 0 0 0 0 0 0").0);
    assert_eq!(run("rm /sys/fs/bpf/n"), ok(""));
    assert_eq!(run("bpftool -j map show"), ok("[]\n"));
    // No door to the kernel's own objects.
    let (is_made, text) =
        run("bpftool map create /tmp/bpfarray_none type array key 4 value 8 entries 2 name m");
    assert!(!is_made && text.contains("not permitted"), "{text}");
    std::fs::remove_dir_all(path).unwrap();
}

#[test]
fn bpftool_fills_and_shows_maps_of_objects() {
    let Some(_) = library().filter(|_| is_installed("bpftool")) else {
        eprintln!("SKIPPED: no bpftool, or no library");
        return;
    };
    let path = objects("of-maps");
    let run = |arguments: &str| {
        let words: Vec<_> = std::iter::once("--").chain(arguments.split_whitespace()).collect();
        let output = exec(&path, &words).output().unwrap();
        let (found, errors) = text(&output);
        (output.status.success(), found + &errors)
    };
    let ok = |text: &str| (true, text.to_owned());
    let create = |name: &str, what: &str| {
        assert_eq!(
            run(&format!("bpftool map create /sys/fs/bpf/{name} {what} name {name}")),
            ok("")
        );
    };
    create("inner", "type array key 4 value 8 entries 2");
    create("other", "type array key 4 value 8 entries 2");
    create("longer", "type array key 4 value 8 entries 3");
    let outer = "type array_of_maps key 4 value 4 entries 3";
    let inner_map = "inner_map pinned /sys/fs/bpf";
    create("outer", &format!("{outer} {inner_map}/inner"));
    let put = |index: u32, name: &str| {
        let outer = "bpftool map update pinned /sys/fs/bpf/outer key";
        run(&format!("{outer} {index} 0 0 0 value pinned /sys/fs/bpf/{name}"))
    };
    assert_eq!((put(1, "inner"), put(2, "other")), (ok(""), ok("")));
    assert!(!put(0, "longer").0 && !put(0, "outer").0 && !put(3, "inner").0);
    // The slot keeps it.
    assert_eq!(run("rm /sys/fs/bpf/other"), ok(""));
    assert_eq!(run("bpftool map update id 2 key 0 0 0 0 value 1 2 3 4 5 6 7 8"), ok(""));
    let entries = "key: 01 00 00 00  value: 01 00 00 00\nkey: 02 00 00 00  value: 02 00 00 00\n";
    let dump = run("bpftool map dump pinned /sys/fs/bpf/outer");
    assert_eq!(dump, ok(&format!("{entries}Found 2 elements\n")));
    let lookup = |key: u32| run(&format!("bpftool map lookup id 4 key {key} 0 0 0"));
    assert_eq!(lookup(2), ok("key: 02 00 00 00  value: 02 00 00 00\n"));
    assert!(lookup(0).1.contains("Not found"));
    assert_eq!(run("bpftool map delete id 4 key 2 0 0 0"), ok(""));
    assert!(!run("bpftool map show id 2").0, "nothing refers to it any more");
    assert!(!run("bpftool map delete id 4 key 2 0 0 0").0, "the slot is empty");
    create("groups", "type cgroup_array key 4 value 4 entries 1");
    create("events", "type perf_event_array key 4 value 4 entries 1");
    create("programs", "type prog_array key 4 value 4 entries 1");
    assert_eq!(run("bpftool map dump pinned /sys/fs/bpf/programs"), ok("Found 0 elements\n"));
    let load = run("bpftool prog load testdata/progs/xdp_packet.bpf.o /sys/fs/bpf/prog");
    assert!(load.0, "{}", load.1);
    let put = "bpftool map update pinned /sys/fs/bpf/programs key 0 0 0 0 value pinned";
    assert_eq!(run(&format!("{put} /sys/fs/bpf/prog")), ok(""));
    assert!(!run(&format!("{put} /sys/fs/bpf/inner")).0);
    assert_eq!(run("rm /sys/fs/bpf/prog"), ok(""));
    let dump = run("bpftool map dump pinned /sys/fs/bpf/programs");
    // libbpf has loaded others before, to see what works.
    let id = dump.1.strip_prefix("key: 00 00 00 00  value: ").unwrap_or_default();
    let id = u8::from_str_radix(id.get(..2).unwrap_or_default(), 16).unwrap();
    let show = format!("bpftool prog show id {id}");
    assert!(run(&show).0, "its slot keeps it");
    assert_eq!(run("rm /sys/fs/bpf/programs"), ok(""));
    assert!(!run(&show).0);
    let nested = format!("bpftool map create /sys/fs/bpf/n {outer} name n {inner_map}/outer");
    assert!(!run(&nested).0);
    std::fs::remove_dir_all(path).unwrap();
}

#[test]
fn calls_are_traced_to_stderr() {
    let Some(_) = library().filter(|_| is_installed("python3")) else { return };
    let path = objects("trace");
    let script = "import ctypes; a = (ctypes.c_uint32 * 4)(2, 4, 8, 1); ctypes.CDLL(None).syscall(321, 0, a, 16)";
    if cfg!(target_arch = "x86_64") {
        let output = exec(&path, &["--trace", "--", "python3", "-c", script]).output().unwrap();
        let (_, errors) = text(&output);
        let start = "bpf(BPF_MAP_CREATE, {map_type=BPF_MAP_TYPE_ARRAY, key_size=4, value_size=8, max_entries=1}, 16) = ";
        assert!(errors.starts_with(start), "{errors}");
        std::fs::remove_dir_all(path).unwrap();
    }
}

#[test]
fn what_would_reach_the_kernel_is_not_run() {
    let path = objects("refused");
    let refused = |arguments: &[&str]| {
        let output = exec(&path, arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        text(&output).1
    };
    assert!(refused(&["--", "no_such_program"]).contains("no such program in PATH"));
    let text = temporary("no_elf", b"hello");
    assert!(refused(&["--", &text]).contains("statically linked"));
    let script = temporary("script", format!("#!{text}\n").as_bytes());
    assert!(refused(&["--", &script]).contains(&format!("{text}: statically linked")));
    let own = temporary("privileged", &std::fs::read(env!("CARGO_BIN_EXE_bpfarray")).unwrap());
    let set = |mode| std::fs::set_permissions(&own, std::fs::Permissions::from_mode(mode)).unwrap();
    set(0o4755);
    // For its owner it changes nothing.
    assert_eq!(exec(&path, &["--", &own, "--version"]).output().unwrap().status.code(), Some(0));
    let output = exec(&path, &["--", "true"]).env("BPFARRAY_PRELOAD", &text).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("does not load the library"));
    assert_eq!(output.status.code(), Some(1));
    let _ = std::fs::remove_dir_all(path);
}
