use super::*;
use crate::activations::Storage;
use std::fs::File;
use std::os::unix::fs::symlink;

const KEY: &str = "0123456789abcdef";
const OTHER: &str = "fedcba9876543210";
const N_LAYERS: usize = 5;

/// A destination in a temporary folder, of which nothing exists.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn dst(&self) -> PathBuf {
        self.0.path().join("out")
    }

    fn folder(&self, key: &str) -> PathBuf {
        self.0.path().join(format!("out.calibration-{key}"))
    }

    fn open_every(&self, key: &str, every: Duration) -> Result<(SavedPass, Vec<PathBuf>)> {
        SavedPass::open(Place { beside: &self.dst(), mark: ".calibration-" }, key, every)
    }

    fn open(&self, key: &str) -> SavedPass {
        self.open_every(key, Duration::ZERO).unwrap().0
    }

    /// Blocks of which the last does not fit the budget, after so many layers.
    fn activations(&self, storage: Storage, layers: usize) -> Activations {
        let mut acts = Activations::new(storage, &[2, 3, 1], 5 * storage.size(), self.0.path()).unwrap();
        let x = layers as f32;
        for (at, block) in [vec![x, -0.0], vec![f32::INFINITY, 0.5, x], vec![-x]].iter().enumerate() {
            acts.put(at, block).unwrap();
        }
        acts
    }

    /// A pass that was interrupted after three layers, the last two of which were saved together.
    fn interrupted(&self) {
        let mut saved = self.open(KEY);
        let add = |saved: &mut SavedPass, layer: usize| saved.add(&record(layer), &self.activations(F32, layer + 1));
        assert!(matches!(add(&mut saved, 0), Saving::Saved));
        saved.every = Duration::from_hours(1);
        assert!(matches!(add(&mut saved, 1), Saving::Later));
        saved.every = Duration::ZERO;
        assert!(matches!(add(&mut saved, 2), Saving::Saved));
    }

    /// What [`Bench::interrupted`] has left.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let names = ["layers-1", "layers-3", "stream-3", STATE];
        let paths = names.map(|name| self.folder(KEY).join(name));
        paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
    }

    fn load(&self, key: &str, activations: &mut Activations) -> Resumed<String> {
        self.open(key).load(N_LAYERS, activations, |_, _| true).unwrap()
    }
}

const F32: Storage = Storage::Float32;

fn record(layer: usize) -> String {
    format!("layer {layer}\n")
}

fn bits(activations: &Activations) -> Vec<Vec<u32>> {
    let of = |at| activations.get(at).unwrap().iter().map(|x| x.to_bits()).collect();
    (0..activations.len()).map(of).collect()
}

/// The load is refused for a reason that names `what`, nothing is taken over, and the next run begins anew.
fn assert_refused(bench: &Bench, key: &str, what: &str, how: &str) {
    let mut acts = bench.activations(F32, 0);
    match bench.load(key, &mut acts) {
        Resumed::Refused(why) => assert!(why.contains(what), "{how}: {why}"),
        other => panic!("{how}: {other:?}"),
    }
    assert_eq!(bits(&acts), bits(&bench.activations(F32, 0)), "{how}");
    assert!(!fs::exists(&bench.folder(key)), "{how}");
    assert_eq!(bench.load(key, &mut acts), Resumed::Nothing, "{how}");
}

#[test]
fn a_pass_goes_on_after_its_last_save() {
    for storage in [F32, Storage::Bfloat16] {
        let bench = Bench::new();
        let mut begun = bench.activations(storage, 0);
        let mut saved = bench.open(KEY);
        assert_eq!(saved.load::<String>(N_LAYERS, &mut begun, |_, _| true).unwrap(), Resumed::Nothing);
        for layer in 0..3 {
            assert!(matches!(saved.add(&record(layer), &bench.activations(storage, layer + 1)), Saving::Saved));
            let names = fs::list(&bench.folder(KEY)).unwrap();
            assert!(names.contains(&format!("stream-{}", layer + 1)) && names.len() == layer + 4, "{names:?}");
        }
        // The next save is torn.
        std::fs::write(bench.folder(KEY).join("stream-4"), "half").unwrap();
        std::fs::write(bench.folder(KEY).join("state.json.tmp"), "{").unwrap();
        drop(saved);
        let mut saved = bench.open(KEY);
        let records: Vec<String> = (0..3).map(record).collect();
        assert_eq!(saved.load(N_LAYERS, &mut begun, |at, r| *r == record(at)).unwrap(), Resumed::Layers(records));
        assert_eq!(bits(&begun), bits(&bench.activations(storage, 3)), "{storage:?}");
        // And on from there.
        saved.add(&record(3), &bench.activations(storage, 4));
        drop(saved);
        assert!(matches!(bench.load(KEY, &mut begun), Resumed::Layers(records) if records.len() == 4));
        assert_eq!(bits(&begun), bits(&bench.activations(storage, 4)), "{storage:?}");
        assert_eq!(fs::list(&bench.folder(KEY)).unwrap().len(), 7);
        bench.open(KEY).discard().unwrap();
        assert_eq!(fs::list(bench.0.path()).unwrap(), [""; 0]);
    }
}

#[test]
fn a_save_waits_for_its_time_or_for_much_to_save() {
    let bench = Bench::new();
    let mut saved = bench.open_every(KEY, Duration::from_hours(1)).unwrap().0;
    let acts = bench.activations(F32, 1);
    assert!(matches!(saved.add(&record(0), &acts), Saving::Later));
    assert_eq!(fs::list(&bench.folder(KEY)).unwrap(), ["lock"]);
    assert!(matches!(saved.add(&"x".repeat(PENDING_LIMIT), &acts), Saving::Saved));
    drop(saved);
    let mut acts = bench.activations(F32, 0);
    assert!(matches!(bench.load(KEY, &mut acts), Resumed::Layers(records) if records.len() == 2));
}

/// Damages one file after the other and expects that the load is refused for it.
fn each_damage(damages: impl Fn(&[u8]) -> Vec<Option<Vec<u8>>>) {
    let bench = Bench::new();
    bench.interrupted();
    let files = bench.files();
    for (path, whole) in &files {
        let name = path.file_name().unwrap().to_str().unwrap();
        for (at, damaged) in damages(whole).into_iter().enumerate() {
            // What is refused is removed, the folder too.
            std::fs::create_dir_all(bench.folder(KEY)).unwrap();
            for (path, bytes) in &files {
                std::fs::write(path, bytes).unwrap();
            }
            match damaged {
                Some(bytes) => std::fs::write(path, bytes).unwrap(),
                // Without the state there is nothing to refuse.
                None if name == STATE => continue,
                None => std::fs::remove_file(path).unwrap(),
            }
            let what = if name == STATE { "" } else { name };
            assert_refused(&bench, KEY, what, &format!("damage {at} of {name}"));
        }
    }
}

#[test]
fn any_flipped_bit_of_any_file_is_refused() {
    each_damage(|whole| {
        let flip = |bit: usize| {
            let mut bytes = whole.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            Some(bytes)
        };
        (0..whole.len() * 8).map(flip).collect()
    });
}

#[test]
fn a_file_cut_anywhere_or_absent_or_longer_is_refused() {
    each_damage(|whole| {
        let cuts = (0..whole.len()).map(|len| Some(whole[..len].to_vec()));
        cuts.chain([None, Some([whole, b"1"].concat())]).collect()
    });
}

#[test]
fn a_state_of_another_key_or_version_is_refused() {
    let bench = Bench::new();
    bench.interrupted();
    std::fs::rename(bench.folder(KEY), bench.folder(OTHER)).unwrap();
    assert_refused(&bench, OTHER, "another", "the folder of another key");
    bench.interrupted();
    let path = bench.folder(KEY).join(STATE);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"schema\":1,", "\"schema\":2,")).unwrap();
    assert_refused(&bench, KEY, "another version", "a newer version");
}

#[test]
fn a_state_that_does_not_fit_is_refused() {
    let bench = Bench::new();
    let other = Storage::Bfloat16;
    for (how, n_layers, storage, good) in
        [("layers", 2, F32, 3), ("sizes", N_LAYERS, other, 3), ("records", N_LAYERS, F32, 2)]
    {
        bench.interrupted();
        let mut acts = bench.activations(storage, 0);
        let got = bench.open(KEY).load(n_layers, &mut acts, |at, _: &String| at < good).unwrap();
        assert!(matches!(got, Resumed::Refused(_)), "{how}: {got:?}");
        assert_eq!(bits(&acts), bits(&bench.activations(storage, 0)), "{how}");
    }
    bench.interrupted();
    let got = bench.open(KEY).load(N_LAYERS, &mut bench.activations(F32, 0), |_, _: &u64| true).unwrap();
    assert!(matches!(got, Resumed::Refused(_)), "another type: {got:?}");
}

#[test]
fn a_hostile_state_is_refused_in_bounded_memory() {
    let bench = Bench::new();
    let huge = 1u64 << 40;
    let part = |layers: u64, size: u64| format!("{{\"layers\":{layers},\"size\":{size},\"crc32\":0}}");
    let state = |layers: u64, stream: String, records: String| {
        format!("{{\"schema\":1,\"key\":\"{KEY}\",\"layers\":{layers},\"stream\":{stream},\"records\":[{records}]}}")
    };
    let states = [
        "[".repeat(1 << 19),
        "0".repeat(1 << 21),
        state(u64::MAX, part(u64::MAX, 24), part(u64::MAX, huge)),
        state(0, part(0, 24), String::new()),
        state(3, part(3, u64::MAX), part(3, huge)),
        state(3, part(3, 24), part(3, u64::MAX)),
        state(3, part(3, 24), part(3, huge)),
        state(3, part(3, 24), part(3, RECORDS_LIMIT)),
    ];
    for text in states {
        bench.interrupted();
        let zeros = crc32fast::hash(&[0; 24]);
        std::fs::write(bench.folder(KEY).join("stream-3"), [0; 24]).unwrap();
        // Takes no room on the disk.
        File::create(bench.folder(KEY).join("layers-3")).unwrap().set_len(huge).unwrap();
        let text = text.replace("\"size\":24,\"crc32\":0", &format!("\"size\":24,\"crc32\":{zeros}"));
        std::fs::write(bench.folder(KEY).join(STATE), &text).unwrap();
        assert_refused(&bench, KEY, "", &text[..text.len().min(200)]);
    }
}

#[test]
fn a_disk_that_takes_no_more_ends_saving_and_keeps_what_was_saved() {
    let bench = Bench::new();
    let mut saved = bench.open(KEY);
    saved.add(&record(0), &bench.activations(F32, 1));
    // Nothing can be created here.
    std::fs::create_dir(bench.folder(KEY).join("stream-2.tmp")).unwrap();
    assert!(matches!(saved.add(&record(1), &bench.activations(F32, 2)), Saving::Failed(Error::Checkpoint(_))));
    assert_eq!(fs::list(&bench.folder(KEY)).unwrap(), ["layers-1", "lock", "state.json", "stream-1"]);
    assert!(matches!(saved.add(&record(2), &bench.activations(F32, 3)), Saving::Later));
    drop(saved);
    let mut acts = bench.activations(F32, 0);
    assert_eq!(bench.load(KEY, &mut acts), Resumed::Layers(vec![record(0)]));
    assert_eq!(bits(&acts), bits(&bench.activations(F32, 1)));
}

#[test]
fn passes_of_other_keys_are_removed_and_nothing_else() {
    let bench = Bench::new();
    bench.interrupted();
    std::fs::create_dir(bench.folder("00000000000000aa")).unwrap();
    let spared = ["out.calibration-data", "out.calibration-0123456789abcdeg", "other.calibration-0123456789abcdef"];
    for name in spared {
        std::fs::create_dir(bench.0.path().join(name)).unwrap();
    }
    // Somebody's own file, and a link.
    std::fs::create_dir(bench.folder("00000000000000bb")).unwrap();
    std::fs::write(bench.folder("00000000000000bb").join("notes"), "").unwrap();
    symlink(bench.0.path().join(spared[0]), bench.folder("00000000000000cc")).unwrap();
    let (saved, removed) = bench.open_every(OTHER, Duration::ZERO).unwrap();
    assert_eq!(removed, [bench.folder(KEY)], "the other one held no state");
    saved.discard().unwrap();
    let left = ["00000000000000bb", "00000000000000cc"].map(|key| format!("out.calibration-{key}"));
    let mut want: Vec<String> = spared.iter().map(ToString::to_string).chain(left).collect();
    want.sort();
    assert_eq!(fs::list(bench.0.path()).unwrap(), want);
}

#[test]
fn a_second_run_on_a_destination_is_refused() {
    let bench = Bench::new();
    let first = bench.open(KEY);
    for key in [KEY, OTHER] {
        match bench.open_every(key, Duration::ZERO).unwrap_err() {
            Error::Checkpoint(error) => assert!(fs::is_held(&error), "{error}"),
            error => panic!("{error}"),
        }
    }
    assert_eq!(fs::list(bench.0.path()).unwrap(), [format!("out.calibration-{KEY}")]);
    drop(first);
    bench.open(OTHER);
}

#[test]
fn a_key_is_that_of_what_decides_the_result_wherever_it_lies() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nemotron-h-10m");
    let copy = tempfile::tempdir().unwrap();
    let weights = copy.path().join("model.safetensors");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(model.join(name), copy.path().join(name)).unwrap();
    }
    let modified = std::fs::metadata(model.join("model.safetensors")).unwrap().modified().unwrap();
    let touch = |time| File::options().write(true).open(&weights).unwrap().set_modified(time).unwrap();
    let of = |folder: &Path, prompts: &[Vec<u32>], options: &str| {
        key(&Source::open(folder, None, false).unwrap(), prompts, &options).unwrap()
    };
    let prompts = [vec![1, 2], vec![3]];
    let want = of(&model, &prompts, "bf16");
    touch(modified);
    assert_eq!(of(copy.path(), &prompts, "bf16"), want);
    let mut others = vec![
        of(&model, &[vec![1], vec![2, 3]], "bf16"),
        of(&model, &[vec![1, 2, 3]], "bf16"),
        of(&model, &prompts, "f32"),
    ];
    touch(modified + Duration::from_nanos(1));
    others.push(of(copy.path(), &prompts, "bf16"));
    touch(modified);
    let config = std::fs::read_to_string(copy.path().join("config.json")).unwrap();
    let changed = config.replace("1e-05", "1e-06");
    assert_ne!(changed, config);
    std::fs::write(copy.path().join("config.json"), changed).unwrap();
    others.push(of(copy.path(), &prompts, "bf16"));
    for other in others {
        assert_ne!(other, want);
    }
}
