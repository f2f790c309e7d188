package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/hyper2kvm/hyper2kvm/daemon/auth"
)

// Check says whether Run could work with a configuration, as far as can be
// told without listening or making anything: files and the rule who may be
// served. What depends on who starts the daemon, and when, is a warning:
// folders that are not there, or that the present user may not write to.
func Check(ctx context.Context, cfg Config) (warnings []string, err error) {
	where, err := resolve(ctx, cfg.Addr)
	if err != nil {
		return nil, err
	}
	silent := slog.New(slog.DiscardHandler)
	if _, err := newSettings(cfg, where.exposed, nil, silent, silent); err != nil {
		return nil, err
	}
	warn := func(what, dir string, made bool) {
		if err := writable(dir, made); err != nil {
			warnings = append(warnings, fmt.Sprintf("%s %s cannot be used as things are: %v", what, dir, err))
		}
	}
	if cfg.UnixSocket != "" {
		if err := auth.CheckSocketPath(cfg.UnixSocket); err != nil {
			return nil, err
		}
		warn("the folder of unix_socket", filepath.Dir(cfg.UnixSocket), false)
	}
	if cfg.StateDir != "" {
		warn("the state folder", cfg.StateDir, true)
	}
	for _, root := range cfg.OutputRoots {
		warn("the output root", root, true)
	}
	return warnings, nil
}

// writable says why this user cannot write to dir; made is for one that would
// be made with its parents.
func writable(dir string, made bool) error {
	for {
		info, err := os.Stat(dir)
		switch {
		case err == nil && !info.IsDir():
			return fmt.Errorf("%s is no folder", dir)
		case err == nil:
			var s unix.Statfs_t
			if err := unix.Statfs(dir, &s); err == nil && (s.Type == unix.PROC_SUPER_MAGIC || s.Type == unix.SYSFS_MAGIC) {
				return fmt.Errorf("%s takes no files", dir)
			}
			if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
				return fmt.Errorf("write to %s: %w", dir, err)
			}
			return nil
		case !made || !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir):
			return err
		}
		dir = filepath.Dir(dir)
	}
}
