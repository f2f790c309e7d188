package output

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

var (
	web   = VM{Name: "web", Path: "/DC0/vm/web", MoRef: "vm-1", InstanceUUID: "u1", Server: "vc"}
	other = VM{Name: "db", Path: "/DC0/vm/db", MoRef: "vm-2", InstanceUUID: "u2", Server: "vc"}
)

func hold(t *testing.T, dir string) *Folder {
	t.Helper()
	f, err := Hold(dir, "/DC0/vm/web")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// write makes a finished file in a journal.
func write(t *testing.T, f *Folder, j *Journal, name, data string) File {
	t.Helper()
	if err := j.Claim([]string{name}); err != nil {
		t.Fatal(err)
	}
	if err := f.Put(name, []byte(data)); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(data))
	file := File{Name: name, Role: RoleDisk, Size: int64(len(data)), SHA256: hex.EncodeToString(sum[:]), Proof: ProofHost}
	if err := j.Finish(file); err != nil {
		t.Fatal(err)
	}
	return file
}

func begin(t *testing.T, f *Folder, vm VM, state string, overwrite bool) *Journal {
	t.Helper()
	j, err := f.Begin(vm, state, nil, overwrite)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestHoldIsExclusiveAndLeavesNothing(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "a", "b")
	f := hold(t, dir)
	_, err := Hold(dir, "/DC0/vm/db")
	if problem.KindOf(err) != problem.Conflict || !strings.Contains(err.Error(), "/DC0/vm/web") {
		t.Fatalf("second hold: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got := names(t, top); len(got) != 0 {
		t.Fatalf("left behind: %v", got)
	}
	hold(t, dir)
}

func TestHoldKeepsFoldersThatWereThere(t *testing.T) {
	dir := t.TempDir()
	f := hold(t, dir)
	f.Close()
	if got := names(t, dir); len(got) != 0 {
		t.Fatalf("left behind: %v", got)
	}
}

func TestHoldRefusesAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Hold(filepath.Join(path, "x"), "vm"); err == nil {
		t.Fatal("no error")
	}
}

func TestExportLife(t *testing.T) {
	dir := t.TempDir()
	f := hold(t, dir)
	j := begin(t, f, web, "s1", false)
	file := write(t, f, j, "web-disk-0.vmdk", "disk")
	if got := names(t, dir); !slices.Equal(got, []string{lockName, journalName, "web-disk-0.vmdk"}) {
		t.Fatalf("while running: %v", got)
	}
	if _, err := Verify(t.Context(), dir, nil); err == nil || !strings.Contains(err.Error(), "not finished") {
		t.Fatalf("verify of an unfinished export: %v", err)
	}
	if err := j.Complete(Receipt{VM: web, Files: []File{file}, Completed: time.Now()}); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if got := names(t, dir); !slices.Equal(got, []string{ReceiptName, "web-disk-0.vmdk"}) {
		t.Fatalf("at the end: %v", got)
	}
	report, err := Verify(t.Context(), dir, nil)
	if err != nil || !report.OK {
		t.Fatalf("verify: %+v, %v", report, err)
	}

	// The same folder again: refused, whoever asks.
	f = hold(t, dir)
	for _, vm := range []VM{web, other} {
		if _, err := f.Begin(vm, "s1", nil, false); problem.KindOf(err) != problem.Conflict {
			t.Fatalf("begin in a whole export: %v", err)
		}
	}
	// Overwrite replaces its files only.
	if err := os.WriteFile(filepath.Join(dir, "notes.txt"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	j = begin(t, f, other, "s2", true)
	if err := j.Claim([]string{"notes.txt"}); problem.KindOf(err) != problem.Conflict {
		t.Fatalf("claim of a foreign file: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, ReceiptName)); err != nil {
		t.Fatalf("the old receipt went before anything was claimed: %v", err)
	}
	file = write(t, f, j, "db-disk-0.vmdk", "other")
	if err := j.Complete(Receipt{VM: other, Files: []File{file}}); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if got := names(t, dir); !slices.Equal(got, []string{"db-disk-0.vmdk", ReceiptName, "notes.txt"}) {
		t.Fatalf("after overwrite: %v", got)
	}
}

func TestBeginContinues(t *testing.T) {
	for name, tc := range map[string]struct {
		vm        VM
		state     string
		overwrite bool
		err       problem.Kind
		refused   bool
		finished  bool
		partial   bool
	}{
		"same state":               {vm: web, state: "s1", finished: true, partial: true},
		"disks changed":            {vm: web, state: "s2"},
		"state unknown":            {vm: web, state: ""},
		"another VM":               {vm: other, state: "s1", refused: true},
		"another VM and overwrite": {vm: other, state: "s1", overwrite: true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			f := hold(t, dir)
			j := begin(t, f, web, "s1", false)
			write(t, f, j, "web-disk-0.vmdk", "disk")
			if err := j.Claim([]string{"web-disk-1.vmdk"}); err != nil {
				t.Fatal(err)
			}
			p, err := f.Open("web-disk-1.vmdk")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.Write([]byte("half")); err != nil {
				t.Fatal(err)
			}
			p.Close()
			if kept, err := j.Abandon(); !kept || err != nil {
				t.Fatalf("abandon: %v %v", kept, err)
			}
			f.Close()

			f = hold(t, dir)
			j, err = f.Begin(tc.vm, tc.state, nil, tc.overwrite)
			if tc.refused {
				if problem.KindOf(err) != problem.Conflict {
					t.Fatalf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := j.Finished("web-disk-0.vmdk"); ok != tc.finished {
				t.Errorf("finished file kept: %v", ok)
			}
			if _, err := os.Stat(filepath.Join(dir, "web-disk-1.vmdk.partial")); (err == nil) != tc.partial {
				t.Errorf("partial file: %v", err)
			}
			if err := j.Claim([]string{"web-disk-0.vmdk", "web-disk-1.vmdk"}); err != nil {
				t.Errorf("claim of its own files: %v", err)
			}
		})
	}
}

func TestBeginForgetsFilesThatChanged(t *testing.T) {
	dir := t.TempDir()
	f := hold(t, dir)
	j := begin(t, f, web, "s1", false)
	write(t, f, j, "web-disk-0.vmdk", "disk")
	if err := os.WriteFile(filepath.Join(dir, "web-disk-0.vmdk"), []byte("truncated?"), 0o600); err != nil {
		t.Fatal(err)
	}
	j = begin(t, f, web, "s1", false)
	if _, ok := j.Finished("web-disk-0.vmdk"); ok {
		t.Fatal("a file of another size counts as finished")
	}
	if err := j.Claim([]string{"web-disk-0.vmdk"}); err != nil {
		t.Fatal(err)
	}
}

func TestAbandonOfNothingLeavesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "out")
	f := hold(t, dir)
	j := begin(t, f, web, "s1", false)
	if err := j.Claim([]string{"web-disk-0.vmdk"}); err != nil {
		t.Fatal(err)
	}
	p, err := f.Open("web-disk-0.vmdk")
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	if kept, err := j.Abandon(); kept || err != nil {
		t.Fatalf("abandon: %v %v", kept, err)
	}
	f.Close()
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the folder is still there: %v", err)
	}
}

func TestRecordsAreHostile(t *testing.T) {
	for name, tc := range map[string]struct{ file, text string }{
		"damaged receipt":      {ReceiptName, `{"files":[`},
		"receipt names a path": {ReceiptName, `{"files":[{"name":"../../etc/passwd"}]}`},
		"damaged journal":      {journalName, `nope`},
		"journal names a path": {journalName, `{"partials":["a/b"]}`},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, tc.file), []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			f := hold(t, dir)
			if _, err := f.Begin(web, "s", nil, true); problem.KindOf(err) != problem.Conflict {
				t.Fatalf("begin: %v", err)
			}
			if tc.file == ReceiptName {
				if _, err := Verify(t.Context(), dir, nil); err == nil {
					t.Fatal("verify: no error")
				}
			}
		})
	}
}

func TestPartialRefusesSymlinks(t *testing.T) {
	dir, elsewhere := t.TempDir(), filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(elsewhere, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, filepath.Join(dir, "web.ovf.partial")); err != nil {
		t.Fatal(err)
	}
	f := hold(t, dir)
	if err := f.Put("web.ovf", []byte("x")); err == nil {
		t.Fatal("no error")
	}
	if data, _ := os.ReadFile(elsewhere); string(data) != "precious" {
		t.Fatal("the link was followed")
	}
}

func TestVerifyFindsWhatIsWrong(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(t *testing.T, path string)
		want  string
	}{
		"flipped byte": {func(t *testing.T, p string) { must(t, os.WriteFile(p, []byte("disc"), 0o600)) }, "SHA-256"},
		"shorter":      {func(t *testing.T, p string) { must(t, os.Truncate(p, 2)) }, "2 bytes"},
		"gone":         {func(t *testing.T, p string) { must(t, os.Remove(p)) }, "missing"},
		"a folder": {func(t *testing.T, p string) {
			must(t, os.Remove(p))
			must(t, os.Mkdir(p, 0o700))
		}, "regular"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			f := hold(t, dir)
			j := begin(t, f, web, "s", false)
			file := write(t, f, j, "web-disk-0.vmdk", "disk")
			must(t, j.Complete(Receipt{VM: web, Files: []File{file}}))
			tc.spoil(t, filepath.Join(dir, file.Name))
			report, err := Verify(t.Context(), dir, nil)
			if err != nil || report.OK || !strings.Contains(report.Files[0].Problem, tc.want) {
				t.Fatalf("%+v, %v", report, err)
			}
		})
	}
}

func TestVerifyEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	f := hold(t, dir)
	j := begin(t, f, web, "s", false)
	must(t, j.Complete(Receipt{VM: web, Files: []File{write(t, f, j, "web-disk-0.vmdk", "disk")}}))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Verify(ctx, dir, nil); problem.KindOf(err) != problem.Cancelled {
		t.Fatalf("error %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestStem(t *testing.T) {
	for in, want := range map[string]string{
		"web01":              "web01",
		"web 01 [prod]":      "web 01 [prod]",
		"a/b\\c":             "a_b_c",
		"日本語":                "日本語",
		"..":                 "vm-1",
		"":                   "vm-1",
		".hidden":            "_hidden",
		"-rf":                "_rf",
		"nul\x00and\nline":   "nul_and_line",
		"trailing. ":         "trailing",
		"\xff\xfe":           "vm-1",
		"../../etc/passwd":   "_._.._etc_passwd",
		"right\u202eto-left": "right_to-left",
	} {
		if got := Stem(in, "vm-1"); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzStem(f *testing.F) {
	f.Add("web01")
	f.Add("../x")
	f.Add(strings.Repeat("語", 300))
	f.Fuzz(func(t *testing.T, in string) {
		s := Stem(in, "vm")
		if s == "" || len(s) > maxStem || !utf8.ValidString(s) || strings.ContainsAny(s, "/\x00\\") ||
			s[0] == '.' || s[0] == '-' || filepath.Base(s+".ovf") != s+".ovf" {
			t.Fatalf("%q: %q", in, s)
		}
	})
}

func TestExtension(t *testing.T) {
	for in, want := range map[string]string{
		"x.ISO": ".iso", "x": ".bin", "x.": ".bin", "x.a/b": ".bin", "x.verylongone": ".bin", "x.flp": ".flp", "../..": ".bin",
	} {
		if got := Extension(in, ".bin"); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// TestHoldBelow: no link leads out of the base, neither before the folder is
// held nor while it is.
func TestHoldBelow(t *testing.T) {
	base, outside := t.TempDir(), t.TempDir()
	link := func(to, name string) {
		t.Helper()
		if err := os.Symlink(to, filepath.Join(base, name)); err != nil {
			t.Fatal(err)
		}
	}
	link(outside, "out")
	link("real", "in")
	if err := os.Mkdir(filepath.Join(base, "real"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{base + "/out", base + "/out/x", base + "/../x", outside, base + "/in/../../x"} {
		if f, err := HoldBelow(base, dir, "vm"); err == nil {
			t.Errorf("%s: held", dir)
			f.Close()
		}
	}
	if _, err := HoldBelow(base+"/nowhere", base+"/nowhere/x", "vm"); problem.KindOf(err) != problem.Failed {
		t.Errorf("no base: %v", err)
	}
	f, err := HoldBelow(base, base+"/in/a/b", "vm")
	if err != nil || f.Dir() != base+"/in/a/b" {
		t.Fatal(err)
	}
	if _, err := f.Free(); err != nil {
		t.Error(err)
	}
	if _, err := HoldBelow(base, base+"/real/a/b", "vm"); problem.KindOf(err) != problem.Conflict {
		t.Errorf("held twice: %v", err)
	}
	// Somebody puts a link to elsewhere in its place.
	if err := errors.Join(os.Rename(base+"/real/a", base+"/moved"), os.Symlink(outside, base+"/real/a")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(outside+"/b", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := f.Put("disk.vmdk", []byte("data")); err != nil {
		t.Error(err)
	}
	if got := names(t, base+"/moved/b"); !slices.Contains(got, "disk.vmdk") {
		t.Errorf("the folder holds %v", got)
	}
	if got := names(t, outside+"/b"); len(got) != 0 {
		t.Errorf("outside there is %v", got)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	// Folders that were made and are empty again go away, the base stays.
	f, err = HoldBelow(base, base+"/x/y", "vm")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if got := names(t, base); slices.Contains(got, "x") {
		t.Errorf("left: %v", got)
	}
}
