package config

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/jobfile"
	"github.com/hyper2kvm/hyper2kvm/internal/jobfile/strict"
)

var keys = []string{
	"addr", "unix_socket", "hosts", "state_dir", "max_running_jobs", "streams_per_host", "max_streams", "bandwidth", "output_roots", "tokens_file", "tls", "rate_limit", "retention",
	"log_format", "log_level", "defaults", "vcenters",
}

// readFile reads the configuration file. Its relative paths are of its own
// folder.
func (c *reader) readFile() error {
	data, mode, err := readBounded(c.File, strict.MaxSize)
	if err != nil {
		return err
	}
	root, err := strict.Parse(data, strict.YAML)
	if err != nil {
		return err
	}
	inline := false // a password stands in the file itself
	err = walk(root, "", keys, func(p strict.Pair) (err error) {
		c.from[p.Key] = fmt.Sprintf("%s, line %d", c.File, p.Line)
		switch p.Key {
		case "addr":
			c.Addr, err = p.Text()
		case "unix_socket":
			c.UnixSocket, err = c.path(p.Node)
		case "hosts":
			c.Hosts, err = list(p.Node, strings.ToLower)
		case "state_dir":
			c.StateDir, err = c.path(p.Node)
		case "max_running_jobs":
			c.MaxRunning, err = number(p.Node, 1, MaxRunningLimit)
		case "streams_per_host":
			c.StreamsPerHost, err = number(p.Node, 0, models.MaxStreams)
		case "max_streams":
			c.MaxStreams, err = number(p.Node, 0, models.MaxStreams)
		case "bandwidth":
			c.Bandwidth, err = jobfile.Bandwidth(p.Node)
		case "output_roots":
			// As they are written: a relative one is more likely a slip.
			c.OutputRoots, err = list(p.Node, nil)
		case "tokens_file":
			c.TokensFile, err = c.path(p.Node)
		case "tls":
			err = c.tls(p.Node)
		case "rate_limit":
			err = c.rateLimit(p.Node)
		case "retention":
			err = c.retention(p.Node)
		case "log_format":
			c.LogFormat, err = p.Text()
		case "log_level":
			c.LogLevel, err = level(p.Node)
		case "defaults":
			c.Defaults, err = jobfile.Options(p.Node, "defaults")
		case "vcenters":
			inline, err = c.vcenters(p.Node)
		}
		return err
	})
	if err != nil {
		return err
	}
	// Its group may read it: that is the daemon's in the packages.
	if inline && mode.Perm()&0o027 != 0 {
		c.warn("the configuration holds a password and others may use it: chmod g-w,o-rwx %s", c.File)
	}
	return nil
}

func (c *reader) warn(format string, args ...any) {
	c.Warnings = append(c.Warnings, fmt.Sprintf(format, args...))
}

func (c *reader) tls(n *strict.Node) error {
	return walk(n, "tls", []string{"cert", "key", "client_ca", "viewers"}, func(p strict.Pair) (err error) {
		switch p.Key {
		case "cert":
			c.TLS.Cert, err = c.path(p.Node)
		case "key":
			c.TLS.Key, err = c.path(p.Node)
		case "client_ca":
			c.TLS.ClientCA, err = c.path(p.Node)
		case "viewers":
			c.TLS.Viewers, err = list(p.Node, nil)
		}
		return err
	})
}

func (c *reader) rateLimit(n *strict.Node) error {
	return walk(n, "rate_limit", []string{"per_second", "burst"}, func(p strict.Pair) (err error) {
		switch p.Key {
		case "per_second":
			c.RateLimit.PerSecond, err = number(p.Node, 0, maxRate)
		case "burst":
			c.RateLimit.Burst, err = number(p.Node, 1, maxRate)
		}
		return err
	})
}

func (c *reader) retention(n *strict.Node) error {
	return walk(n, "retention", []string{"days", "jobs"}, func(p strict.Pair) (err error) {
		switch p.Key {
		case "days":
			c.Retention.Days, err = number(p.Node, 0, maxKeepDays)
		case "jobs":
			c.Retention.Jobs, err = number(p.Node, 0, maxKeepJobs)
		}
		return err
	})
}

// path reads a file's name.
func (c *reader) path(n *strict.Node) (string, error) {
	s, err := n.Text()
	return c.beside(s), err
}

func number(n *strict.Node, low, high int) (int, error) {
	v, err := n.Int()
	if err == nil && (v < low || v > high) {
		err = &strict.Error{Line: n.Line, Msg: fmt.Sprintf("is %d, want %d to %d", v, low, high)}
	}
	return v, err
}

func level(n *strict.Node) (slog.Level, error) {
	s, err := n.Text()
	if err != nil {
		return 0, err
	}
	l, err := parseLevel(s)
	if err != nil {
		return 0, &strict.Error{Line: n.Line, Msg: err.Error()}
	}
	return l, nil
}

// list reads a list of texts, or one text alone. Each passes through change,
// which may be nil.
func list(n *strict.Node, change func(string) string) ([]string, error) {
	items := n.Items
	if n.Kind != strict.List {
		items = []*strict.Node{n}
	}
	out := make([]string, 0, len(items))
	for _, item := range items {
		s, err := item.Text()
		if err != nil {
			return nil, err
		}
		if s == "" {
			return nil, &strict.Error{Line: item.Line, Msg: "is empty"}
		}
		if change != nil {
			s = change(s)
		}
		out = append(out, s)
	}
	return out, nil
}
