package roots

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

// judge checks what Check says of folders: "" is yes, else a part of the
// error.
func judge(t *testing.T, r *Roots, folders map[string]string) {
	t.Helper()
	for dir, want := range folders {
		err := r.Check(dir)
		switch {
		case want == "" && err != nil:
			t.Errorf("%q: %v", dir, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want) || problem.KindOf(err) != problem.Invalid):
			t.Errorf("%q: %v, want %q", dir, err, want)
		}
	}
}

func make1(t *testing.T, make func() error) {
	t.Helper()
	if err := make(); err != nil {
		t.Fatal(err)
	}
}

func TestBelowRoots(t *testing.T) {
	base := t.TempDir()
	root, outside := filepath.Join(base, "srv"), filepath.Join(base, "outside")
	for _, d := range []string{root + "/vm1", root + "/inner/x", outside, base + "/srv2", base + "/own/exports"} {
		make1(t, func() error { return os.MkdirAll(d, 0o700) })
	}
	make1(t, func() error { return os.WriteFile(root+"/file", nil, 0o600) })
	for name, target := range map[string]string{
		"out": outside, "up": "../outside", "self": "vm1", "absolute": root + "/vm1", "nowhere": "not/there", "etc": "/etc", "loop": "loop",
	} {
		make1(t, func() error { return os.Symlink(target, filepath.Join(root, name)) })
	}
	make1(t, func() error { return os.Symlink(root, base+"/alias") })
	r, err := New([]string{root + "/", base + "/alias", base + "/srv/inner", base + "/gone", base + "/own/exports"}, "", base+"/own")
	if err != nil {
		t.Fatal(err)
	}
	judge(t, r, map[string]string{
		root: "", root + "/vm1": "", root + "/vm1/": "", root + "/new/deep/er": "", root + "/self/x": "", base + "/alias/vm1": "", root + "/inner/x/y": "",
		base + "/own/exports/a": "",
		outside:                 "it is not below an allowed output root (choose a folder below " + root + " or ",
		base + "/srv2/x":        "not below",
		root + "/../outside":    "not below",
		root + "/out":           "escapes",
		root + "/out/x":         "escapes",
		root + "/up/x/y":        "escapes",
		root + "/absolute":      "escapes",
		root + "/etc/x":         "escapes",
		root + "/nowhere":       "a symbolic link that leads nowhere",
		root + "/nowhere/x":     "a symbolic link that leads nowhere",
		root + "/loop/x":        "too many",
		root + "/file":          "is not a folder",
		root + "/file/x":        "is not a folder",
		base + "/gone/x":        "cannot be opened",
		"/etc":                  "not below",
		"relative/x":            "not an absolute path",
		"":                      "not an absolute path",
		root + "/a\x00b":        "not an absolute path",
	})
	// A link that comes later is seen by the next check.
	make1(t, func() error { return os.Rename(root+"/vm1", root+"/vm2") })
	make1(t, func() error { return os.Symlink(outside, root+"/vm1") })
	judge(t, r, map[string]string{root + "/vm1/x": "escapes"})
	for dir, want := range map[string]string{root + "/vm1": root, root: root, outside: "", root + "/../x": ""} {
		if got := r.Of(dir); got != want {
			t.Errorf("%s is below %q, want %q", dir, got, want)
		}
	}
}

func TestWithoutRoots(t *testing.T) {
	base := t.TempDir()
	own := filepath.Join(base, "state")
	make1(t, func() error { return os.MkdirAll(own, 0o700) })
	make1(t, func() error { return os.MkdirAll(base+"/locked", 0o500) })
	for name, target := range map[string]string{"etc": "/etc", "usr": "/usr/local", "home": base, "own": own} {
		make1(t, func() error { return os.Symlink(target, filepath.Join(base, name)) })
	}
	r, err := New(nil, own)
	if err != nil {
		t.Fatal(err)
	}
	folders := map[string]string{
		base: "", base + "/new/x": "", base + "/home/x": "",
		"/etc": "it is in /etc, which is a system folder", "/etc/x/y": "/etc", "/usr/share/x": "/usr", "/boot": "/boot", "/proc/self/cwd": "/proc",
		"/sys/x": "/sys", "/dev/shm/x": "/dev", "/run/x": "/run", "/lib64/x": "/lib64", "/etcetera/../etc": "/etc",
		base + "/etc/x":  "it leads into /etc, which is a system folder",
		base + "/usr":    "it leads into /usr",
		own:              "which is the daemon's own",
		own + "/x":       "which is the daemon's own",
		base + "/own/x":  "which is the daemon's own",
		"/proc/../sys/x": "/sys",
	}
	if os.Geteuid() != 0 { // root may write everywhere
		folders[base+"/locked/x"] = "may not write to " + base + "/locked"
	}
	judge(t, r, folders)
	if err := r.Check("/run/media/u/disk"); err != nil && strings.Contains(err.Error(), "system folder") {
		t.Errorf("removable media: %v", err)
	}
}

func TestNew(t *testing.T) {
	for root, want := range map[string]string{
		"srv": "not absolute", "/": "root of all folders", "//": "root of all folders", "/etc/x": "/etc is a system folder", "/usr": "system folder", "/srv/../boot": "system folder",
	} {
		if _, err := New([]string{root}); err == nil || !strings.Contains(err.Error(), want) || problem.KindOf(err) != problem.Invalid {
			t.Errorf("%q: %v, want %q", root, err, want)
		}
	}
	if _, err := New([]string{"/run/media/disk", "/srv"}); err != nil {
		t.Error(err)
	}
}
