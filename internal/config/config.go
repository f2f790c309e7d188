// Package config resolves the daemon's settings, once, into one plain struct:
// flag over environment over file over default. The file is read strictly. The
// package knows neither the daemon nor vSphere.
package config

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/jobfile"
	"github.com/hyper2kvm/hyper2kvm/internal/jobfile/strict"
	"github.com/hyper2kvm/hyper2kvm/internal/logging"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

// Defaults of the settings.
const (
	DefaultAddr       = "localhost:8080"
	DefaultMaxRunning = 4
	MaxRunningLimit   = 64
)

// maxSecret bounds a password file, in bytes.
const maxSecret = 4096

// Secret is a text that shows itself to nobody who does not ask for it by
// Reveal: not in logs, JSON or formatted output.
type Secret string

// Reveal gives the text.
func (s Secret) Reveal() string { return string(s) }

// String is part of fmt.Stringer.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return logging.Masked
}

// GoString is part of fmt.GoStringer.
func (s Secret) GoString() string { return fmt.Sprintf("%q", s.String()) }

// LogValue is part of slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText serves JSON and YAML alike.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// VCenter is one vCenter or ESXi host that jobs may name.
type VCenter struct {
	Server     string // address as GOVC_URL takes it, without credentials
	Username   string
	Password   Secret
	Insecure   bool     // takes any certificate
	Datacenter string   // for paths that do not begin with one; may be empty
	CACerts    []string // PEM files
	KnownHosts string   // file of thumbprints, as govc writes it
}

// Config is everything hyper2kvmd can be told.
type Config struct {
	Addr       string             // HOST:PORT to listen on
	StateDir   string             // absolute, or empty: nothing is kept
	MaxRunning int                // jobs at once, 1..64
	Defaults   models.Options     // of jobs; nil fields are the built-in ones
	VCenters   map[string]VCenter // by name
	LogFormat  string             // logging.Text or logging.JSON
	Debug      bool
	File       string   // the file that was read; empty without one
	Warnings   []string // what a log should say at the start
}

// Flags are the settings given on the command line; a zero field was not
// given.
type Flags struct {
	Addr       string
	ConfigFile string
	StateDir   string
	MaxRunning int
	LogFormat  string
	Debug      bool
}

// Load resolves the settings. Getenv is asked for H2KVMD_ADDR and
// H2KVMD_CONFIG. Without a file's name no file is read. Errors are
// problem.Invalid and name file, line and key, never a password.
func Load(flags Flags, getenv func(string) string) (Config, error) {
	c := Config{Addr: DefaultAddr, MaxRunning: DefaultMaxRunning, LogFormat: logging.Text}
	c.File = first(flags.ConfigFile, getenv("H2KVMD_CONFIG"))
	if c.File != "" {
		if err := c.readFile(); err != nil {
			return Config{}, problem.New(problem.Invalid, "read configuration "+c.File, err, "")
		}
	}
	c.Addr = first(flags.Addr, getenv("H2KVMD_ADDR"), c.Addr)
	c.StateDir = first(flags.StateDir, c.StateDir)
	c.LogFormat = first(flags.LogFormat, c.LogFormat)
	c.Debug = flags.Debug
	if flags.MaxRunning != 0 {
		c.MaxRunning = flags.MaxRunning
	}
	if err := c.check(); err != nil {
		return Config{}, problem.New(problem.Invalid, "check configuration", err, "")
	}
	return c, nil
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func (c *Config) check() error {
	if _, _, err := net.SplitHostPort(c.Addr); err != nil {
		return fmt.Errorf("addr %q: want HOST:PORT: %w", c.Addr, err)
	}
	if c.MaxRunning < 1 || c.MaxRunning > MaxRunningLimit {
		return fmt.Errorf("max_running_jobs is %d, want 1 to %d", c.MaxRunning, MaxRunningLimit)
	}
	if c.LogFormat != logging.Text && c.LogFormat != logging.JSON {
		return fmt.Errorf("log_format is %q, want %s or %s", c.LogFormat, logging.Text, logging.JSON)
	}
	if c.StateDir != "" {
		abs, err := filepath.Abs(c.StateDir)
		if err != nil {
			return fmt.Errorf("state_dir %q: %w", c.StateDir, err)
		}
		c.StateDir = abs
	}
	return nil
}

// readBounded reads at most limit bytes of a regular file.
func readBounded(name string, limit int64) (data []byte, mode os.FileMode, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	data, err = io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("it is larger than %d bytes", limit)
	}
	return data, info.Mode(), err
}

func (c *Config) readFile() error {
	data, mode, err := readBounded(c.File, strict.MaxSize)
	if err != nil {
		return err
	}
	root, err := strict.Parse(data, strict.YAML)
	if err != nil {
		return err
	}
	var inline bool
	err = walk(root, "", []string{"addr", "state_dir", "max_running_jobs", "log_format", "defaults", "vcenters"}, func(p strict.Pair) (err error) {
		switch p.Key {
		case "addr":
			c.Addr, err = p.Text()
		case "state_dir":
			c.StateDir, err = p.Text()
		case "max_running_jobs":
			if c.MaxRunning, err = p.Int(); err == nil && (c.MaxRunning < 1 || c.MaxRunning > MaxRunningLimit) {
				err = &strict.Error{Line: p.Line, Msg: fmt.Sprintf("is %d, want 1 to %d", c.MaxRunning, MaxRunningLimit)}
			}
		case "log_format":
			c.LogFormat, err = p.Text()
		case "defaults":
			c.Defaults, err = jobfile.Options(p.Node, "defaults")
		case "vcenters":
			c.VCenters = map[string]VCenter{}
			if p.Kind != strict.Map {
				return &strict.Error{Line: p.Line, Msg: "want a map of names"}
			}
			for _, named := range p.Pairs {
				v, plain, err := c.vcenter(named)
				if err != nil {
					return err
				}
				c.VCenters[named.Key] = v
				inline = inline || plain
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	if inline && mode.Perm()&0o077 != 0 {
		c.Warnings = append(c.Warnings, fmt.Sprintf("the configuration holds a password and others may read it: chmod 600 %s", c.File))
	}
	return nil
}

// vcenter reads one named vCenter. Inline reports that its password stands in
// the file itself.
func (c *Config) vcenter(named strict.Pair) (v VCenter, inline bool, err error) {
	where := "vcenters." + named.Key
	fail := func(line int, msg string) error { return &strict.Error{Line: line, Msg: where + ": " + msg} }
	if named.Key == "" {
		return v, false, fail(named.Line, "the name is empty")
	}
	var passwordFile string
	var fileLine int
	keys := []string{"server", "username", "password", "password_file", "insecure", "datacenter", "ca_certs", "known_hosts"}
	err = walk(named.Node, where, keys, func(p strict.Pair) (err error) {
		var s string
		switch p.Key {
		case "server":
			v.Server, err = p.Text()
		case "username":
			v.Username, err = p.Text()
		case "password":
			s, err = p.Text()
			v.Password, inline = Secret(s), true
		case "password_file":
			passwordFile, err = p.Text()
			fileLine = p.Line
		case "insecure":
			v.Insecure, err = p.Bool()
		case "datacenter":
			v.Datacenter, err = p.Text()
		case "known_hosts":
			s, err = p.Text()
			v.KnownHosts = c.beside(s)
		case "ca_certs":
			items := p.Items
			if p.Kind != strict.List {
				items = []*strict.Node{p.Node}
			}
			for _, n := range items {
				if s, err = n.Text(); err != nil {
					return err
				}
				v.CACerts = append(v.CACerts, c.beside(s))
			}
		}
		return err
	})
	switch {
	case err != nil:
		return v, false, err
	case v.Server == "":
		return v, false, fail(named.Line, "server is missing")
	case strings.Contains(v.Server, "@"):
		return v, false, fail(named.Line, "server holds credentials: use username and password_file")
	case v.Username == "":
		return v, false, fail(named.Line, "username is missing")
	case inline && passwordFile != "":
		return v, false, fail(fileLine, "give password or password_file, not both")
	case !inline && passwordFile == "":
		return v, false, fail(named.Line, "password or password_file is missing")
	}
	if passwordFile != "" {
		data, _, err := readBounded(c.beside(passwordFile), maxSecret)
		if err != nil {
			return v, false, fail(fileLine, "password_file: "+err.Error())
		}
		v.Password = Secret(strings.TrimRight(string(data), "\r\n"))
	}
	if v.Password == "" {
		return v, false, fail(named.Line, "the password is empty")
	}
	return v, inline, nil
}

// beside makes a relative name one beside the configuration file.
func (c *Config) beside(name string) string {
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(filepath.Dir(c.File), name)
}

// walk calls take for each pair of a map; an unknown key is an error. Errors
// get line and key.
func walk(n *strict.Node, where string, known []string, take func(strict.Pair) error) error {
	in, prefix := "", ""
	if where != "" {
		in, prefix = " in "+where, where+"."
	}
	if n.Kind != strict.Map {
		return &strict.Error{Line: n.Line, Msg: fmt.Sprintf("%s%s, want a map", strings.TrimPrefix(in+" is ", " in "), n.Kind)}
	}
	for _, p := range n.Pairs {
		ok := false
		for _, k := range known {
			ok = ok || k == p.Key
		}
		if !ok {
			if s := strict.Suggest(p.Key, known); s != "" {
				return &strict.Error{Line: p.Line, Msg: fmt.Sprintf("unknown key %q%s (did you mean %q?)", p.Key, in, s)}
			}
			// Not named: in braces, a password with a comma in it turns into a key.
			return &strict.Error{Line: p.Line, Msg: fmt.Sprintf("unknown key%s (known: %s)", in, strings.Join(known, ", "))}
		}
		err := take(p)
		if e, ok := errors.AsType[*strict.Error](err); ok && !strings.HasPrefix(e.Msg, "vcenters.") && !strings.HasPrefix(e.Msg, "unknown key") {
			return &strict.Error{Line: e.Line, Msg: prefix + p.Key + ": " + e.Msg}
		} else if err != nil {
			return err
		}
	}
	return nil
}
