// Package roots says where the daemon may write: below the configured output
// roots, through no symbolic link that leads out of them. It looks only; the
// folder is made by whoever writes to it.
package roots

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

// system are the folders that exports have no business in, however much the
// daemon's user may. Removable media are mounted below /run/media.
var system = []string{
	"/bin", "/boot", "/dev", "/efi", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/run", "/sbin", "/sys", "/usr",
}

var notSystem = []string{"/run/media"}

// Roots judges output folders. Its methods are safe for concurrent use; the
// zero value has no root.
type Roots struct {
	roots    []string
	excluded []string
}

// New takes the allowed roots, absolute paths that need not exist yet. Without
// one, any folder will do that the daemon's user may write to and that is no
// system folder. Excluded are further folders that will not do in any case,
// as the one of the daemon's own state; empty ones are passed over.
func New(allowed []string, excluded ...string) (*Roots, error) {
	r := &Roots{}
	for _, root := range allowed {
		fail := func(why string) error {
			return problem.New(problem.Invalid, fmt.Sprintf("use output root %q", root), errors.New(why), "give absolute paths such as /srv/exports")
		}
		if !filepath.IsAbs(root) {
			return nil, fail("it is not absolute")
		}
		clean := filepath.Clean(root)
		if clean == "/" {
			return nil, fail("it is the root of all folders: leave output_roots out instead")
		}
		if where := inside(clean, system); where != "" && inside(clean, notSystem) == "" {
			return nil, fail(where + " is a system folder")
		}
		r.roots = append(r.roots, clean)
	}
	for _, e := range excluded {
		if e != "" {
			r.excluded = append(r.excluded, filepath.Clean(e))
		}
	}
	return r, nil
}

// Of gives the innermost allowed root that dir is in by its name; empty for
// none.
func (r *Roots) Of(dir string) string { return r.root(filepath.Clean(dir)) }

// Check says whether a job may write to the folder dir, as far as can be told
// without writing. What it says holds for the moment: a job is checked when it
// comes and again when it begins. The error is a problem.Invalid.
func (r *Roots) Check(dir string) error {
	fail := func(err error, advice string) error {
		return problem.New(problem.Invalid, fmt.Sprintf("use output folder %.200q", dir), err, advice)
	}
	if !filepath.IsAbs(dir) || strings.ContainsRune(dir, 0) {
		return fail(errors.New("it is not an absolute path"), "")
	}
	clean := filepath.Clean(dir)
	base := r.root(clean)
	var found string
	var err error
	switch {
	case len(r.roots) == 0:
		found, err = open(clean)
	case base == "":
		err = errors.New("it is not below an allowed output root")
	default:
		found, err = below(base, clean)
	}
	if err != nil {
		return fail(err, r.advice())
	}
	// A root itself may be a link, and links inside may lead to it.
	real, err := filepath.EvalSymlinks(found)
	if err != nil {
		return fail(plain(err), r.advice())
	}
	for _, e := range r.excluded {
		// A root within an excluded folder was put there on purpose.
		if own := []string{e}; inside(base, own) == "" && (inside(clean, own) != "" || inside(real, own) != "") {
			return fail(fmt.Errorf("it is in %s, which is the daemon's own", e), r.advice())
		}
	}
	if err := unix.Faccessat(unix.AT_FDCWD, real, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return fail(fmt.Errorf("the daemon's user may not write to %s: %w", found, err), "change its permissions, or choose another")
	}
	return nil
}

func (r *Roots) advice() string {
	if len(r.roots) == 0 {
		return "choose another folder"
	}
	return "choose a folder below " + strings.Join(r.roots, " or ")
}

// root gives the innermost root that dir is in, "" for none: of nested roots,
// links out of the inner one are refused.
func (r *Roots) root(dir string) string {
	base := ""
	for _, root := range r.roots {
		if inside(dir, []string{root}) != "" && len(root) > len(base) {
			base = root
		}
	}
	return base
}

// below finds the deepest folder on the way to dir that exists, without
// leaving base. os.Root follows links as long as they stay inside.
func below(base, dir string) (string, error) {
	root, err := os.OpenRoot(base)
	if err != nil {
		return "", fmt.Errorf("the output root %s cannot be opened: %w", base, plain(err))
	}
	defer root.Close()
	rel, err := filepath.Rel(base, dir)
	if err != nil {
		return "", err
	}
	found, err := deepest(rel, root.Stat, root.Lstat)
	return filepath.Join(base, found), err
}

// open is below without roots: the way to dir must not end in a system
// folder, by its name or through links.
func open(dir string) (string, error) {
	judge := func(path, how string) error {
		if where := inside(path, system); where != "" && inside(path, notSystem) == "" {
			return fmt.Errorf("it %s %s, which is a system folder", how, where)
		}
		return nil
	}
	if err := judge(dir, "is in"); err != nil {
		return "", err
	}
	found, err := deepest(dir, os.Stat, os.Lstat)
	if err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(found)
	if err != nil {
		return "", plain(err)
	}
	rest, err := filepath.Rel(found, dir)
	if err != nil {
		return "", err
	}
	return found, judge(filepath.Join(real, rest), "leads into")
}

// deepest gives the part of path that exists; it must be a folder. A link that
// leads nowhere is an error: what it leads to may come to be.
func deepest(path string, stat, lstat func(string) (fs.FileInfo, error)) (string, error) {
	for {
		info, err := stat(path)
		switch {
		case err == nil && !info.IsDir():
			return "", fmt.Errorf("%s is not a folder", path)
		case err == nil:
			return path, nil
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR):
			return "", fmt.Errorf("%s: %w", path, plain(err))
		}
		if _, err := lstat(path); err == nil {
			return "", fmt.Errorf("%s is a symbolic link that leads nowhere", path)
		}
		up := filepath.Dir(path)
		if up == path {
			return "", fmt.Errorf("%s does not exist", path)
		}
		path = up
	}
}

// inside gives the first of folders that path is, or lies in.
func inside(path string, folders []string) string {
	for _, f := range folders {
		if path == f || strings.HasPrefix(path, strings.TrimSuffix(f, "/")+"/") {
			return f
		}
	}
	return ""
}

// plain takes the operation and path out of an *fs.PathError.
func plain(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}
