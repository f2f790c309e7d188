// Package config resolves the daemon's settings, once, into one plain struct:
// flag over environment over file over default. The file is read strictly. The
// package knows neither the daemon nor vSphere.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/jobfile/strict"
	"github.com/hyper2kvm/hyper2kvm/internal/logging"
	"github.com/hyper2kvm/hyper2kvm/internal/pace"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

// Defaults of the settings.
const (
	// DefaultFile is read when it exists and no other is named.
	DefaultFile           = "/etc/hyper2kvm/hyper2kvmd.yaml"
	DefaultAddr           = "localhost:8080"
	DefaultMaxRunning     = 4
	MaxRunningLimit       = models.MaxRunningJobs
	DefaultLogLevel       = "info"
	DefaultStreamsPerHost = pace.DefaultStreamsPerHost
	// DefaultPerSecond and DefaultBurst are far above what a person, a script
	// that waits for jobs, or a dashboard asks for.
	DefaultPerSecond = 100
	DefaultBurst     = 200
	maxRate          = 1_000_000
	// DefaultKeepJobs is how many ended jobs are kept.
	DefaultKeepJobs = 10_000
	maxKeepJobs     = 1_000_000
	maxKeepDays     = 36_500
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

// TLS names the files of the daemon's certificate, PEM, absolute.
type TLS struct {
	Cert, Key string   // both, or neither: no TLS
	ClientCA  string   // who issues client certificates; empty: they are not asked for
	Viewers   []string // common names of client certificates that may look only
}

// RateLimit bounds how often each client may ask.
type RateLimit struct {
	PerSecond int // requests on the long run; 0: no limit
	Burst     int // requests at once
}

// Retention bounds what is kept of jobs that have ended; 0 keeps all.
type Retention struct {
	Days int // since their end
	Jobs int // the last ones
}

// Config is everything hyper2kvmd can be told. All paths are absolute.
type Config struct {
	Addr       string   // HOST:PORT to listen on
	UnixSocket string   // to listen on as well; empty: none
	Hosts      []string // names by which clients may address the daemon, lower case
	StateDir   string   // absolute, or empty: nothing is kept
	MaxRunning int      // jobs at once, 1..64
	// StreamsPerHost and MaxStreams bound streams at once, of each ESXi host
	// and in all; Bandwidth all of them together. 0 is no limit.
	StreamsPerHost int
	MaxStreams     int
	Bandwidth      models.Bandwidth
	OutputRoots    []string           // where jobs may write; empty: anywhere but system folders
	TokensFile     string             // hashes of tokens; empty: none are asked for
	TLS            TLS                // of addr
	RateLimit      RateLimit          // of each client
	Retention      Retention          // of ended jobs
	Defaults       models.Options     // of jobs; nil fields are the built-in ones
	VCenters       map[string]VCenter // by name
	LogFormat      string             // logging.Text or logging.JSON
	LogLevel       slog.Level
	File           string   // the file that was read; empty without one
	Warnings       []string // what a log should say at the start
}

// Flags are the settings given on the command line; a zero field was not
// given.
type Flags struct {
	Addr        string
	UnixSocket  string
	ConfigFile  string
	DefaultFile string // read when it exists and no other is named; empty: none
	StateDir    string
	// DefaultState is the state folder when no other is named; empty: none.
	DefaultState string
	MaxRunning   int
	// StreamsPerHost, MaxStreams and Bandwidth are texts, because 0 is a value;
	// empty means not given.
	StreamsPerHost string
	MaxStreams     string
	Bandwidth      string
	OutputRoots    []string
	TokensFile     string
	TLS            TLS
	LogFormat      string
	Debug          bool
	// NoCredentials leaves what only the service itself can read, systemd's
	// credentials, for a warning: so that a configuration can be checked from
	// a shell.
	NoCredentials bool
}

// Load resolves the settings: flag over environment over file over default.
// Getenv is asked for H2KVMD_CONFIG, _ADDR, _UNIX_SOCKET, _STATE, _TOKENS_FILE,
// _TLS_CERT, _TLS_KEY, _TLS_CLIENT_CA, _OUTPUT_ROOTS (joined by colons),
// _MAX_RUNNING_JOBS, _STREAMS_PER_HOST, _MAX_STREAMS, _BANDWIDTH, _LOG_FORMAT and _LOG_LEVEL, for CREDENTIALS_DIRECTORY and
// for what the file names by username_env and password_env. Errors are
// problem.Invalid and name file, line and key, never a password.
func Load(flags Flags, getenv func(string) string) (Config, error) {
	c, err := read(flags, getenv, credentials{getenv: getenv, lenient: flags.NoCredentials})
	if err != nil {
		return Config{}, err
	}
	return c.Config, nil
}

// TokensFile resolves the one setting that managing tokens needs, without
// reading any secret: empty when none is set.
func TokensFile(flags Flags, getenv func(string) string) (string, error) {
	c, err := read(flags, getenv, credentials{skip: true})
	return c.TokensFile, err
}

// StateDir resolves the one setting that a backup needs, without reading any
// secret.
func StateDir(flags Flags, getenv func(string) string) (string, error) {
	c, err := read(flags, getenv, credentials{skip: true})
	if err == nil && c.StateDir == "" {
		err = problem.New(problem.Invalid, "find the state folder", errors.New("none is configured"), "give it with -state")
	}
	return c.StateDir, err
}

// reader is a Config while it is resolved.
type reader struct {
	Config
	credentials credentials
	from        map[string]string // where a setting comes from, by its key in the file
}

const tryAgain = "put it right; hyper2kvmd -check-config says whether all is well"

func read(flags Flags, getenv func(string) string, cred credentials) (*reader, error) {
	c := &reader{credentials: cred, from: map[string]string{}, Config: Config{
		Addr: DefaultAddr, MaxRunning: DefaultMaxRunning, StreamsPerHost: DefaultStreamsPerHost, LogFormat: logging.Text,
		RateLimit: RateLimit{DefaultPerSecond, DefaultBurst}, Retention: Retention{Jobs: DefaultKeepJobs},
	}}
	c.File = first(flags.ConfigFile, getenv("H2KVMD_CONFIG"))
	if c.File == "" && flags.DefaultFile != "" {
		if _, err := os.Stat(flags.DefaultFile); !errors.Is(err, fs.ErrNotExist) {
			c.File = flags.DefaultFile // whatever else is the matter, reading it says
		}
	}
	if c.File != "" {
		abs, err := filepath.Abs(c.File)
		if err != nil {
			return c, problem.New(problem.Invalid, "read configuration "+c.File, err, "")
		}
		c.File = abs
		if err := c.readFile(); err != nil {
			advice := tryAgain
			if e, ok := errors.AsType[*fs.PathError](err); ok && e.Path == c.File {
				advice = "name a file that can be read with -config or H2KVMD_CONFIG"
			}
			return c, problem.New(problem.Invalid, "read configuration "+c.File, err, advice)
		}
	}
	if err := c.override(flags, getenv); err != nil {
		return c, err
	}
	if key, err := c.check(); err != nil {
		what := "check configuration"
		if from := c.from[key]; from != "" {
			what += " (" + from + ")"
		}
		return c, problem.New(problem.Invalid, what, err, tryAgain)
	}
	return c, nil
}

// override takes what flags and environment say over what the file says. Their
// relative paths are of the working folder.
func (c *reader) override(flags Flags, getenv func(string) string) error {
	fail := func(name string, err error) error {
		return problem.New(problem.Invalid, "read "+name, err, "")
	}
	// given gives the value of a flag or else of its variable, and notes which.
	given := func(key, value, flag, env string) (v, name string) {
		if value != "" {
			v, name = value, "-"+flag
		} else if v = getenv(env); v != "" {
			name = env
		}
		if v != "" {
			c.from[key] = name
		}
		return v, name
	}
	for _, s := range []struct {
		to                    *string
		key, value, flag, env string
		path                  bool
	}{
		{&c.Addr, "addr", flags.Addr, "addr", "H2KVMD_ADDR", false},
		{&c.UnixSocket, "unix_socket", flags.UnixSocket, "unix-socket", "H2KVMD_UNIX_SOCKET", true},
		{&c.StateDir, "state_dir", flags.StateDir, "state", "H2KVMD_STATE", true},
		{&c.TokensFile, "tokens_file", flags.TokensFile, "tokens-file", "H2KVMD_TOKENS_FILE", true},
		{&c.TLS.Cert, "tls", flags.TLS.Cert, "tls-cert", "H2KVMD_TLS_CERT", true},
		{&c.TLS.Key, "tls", flags.TLS.Key, "tls-key", "H2KVMD_TLS_KEY", true},
		{&c.TLS.ClientCA, "tls", flags.TLS.ClientCA, "tls-client-ca", "H2KVMD_TLS_CLIENT_CA", true},
		{&c.LogFormat, "log_format", flags.LogFormat, "log-format", "H2KVMD_LOG_FORMAT", false},
	} {
		v, name := given(s.key, s.value, s.flag, s.env)
		if v == "" {
			continue
		}
		if s.path {
			abs, err := filepath.Abs(v)
			if err != nil {
				return fail(name, err)
			}
			v = abs
		}
		*s.to = v
	}
	if c.StateDir == "" {
		c.StateDir = flags.DefaultState
	}
	roots := flags.OutputRoots
	if len(roots) == 0 {
		roots = filepath.SplitList(getenv("H2KVMD_OUTPUT_ROOTS"))
	}
	if len(roots) > 0 {
		c.OutputRoots = roots
	}
	maxRunning := ""
	if flags.MaxRunning != 0 {
		maxRunning = strconv.Itoa(flags.MaxRunning)
	}
	for _, s := range []struct {
		to                    *int
		key, value, flag, env string
	}{
		{&c.MaxRunning, "max_running_jobs", maxRunning, "max-running-jobs", "H2KVMD_MAX_RUNNING_JOBS"},
		{&c.StreamsPerHost, "streams_per_host", flags.StreamsPerHost, "streams-per-host", "H2KVMD_STREAMS_PER_HOST"},
		{&c.MaxStreams, "max_streams", flags.MaxStreams, "max-streams", "H2KVMD_MAX_STREAMS"},
	} {
		if v, name := given(s.key, s.value, s.flag, s.env); v != "" {
			n, err := strconv.Atoi(v)
			if err != nil {
				return fail(name, fmt.Errorf("%.40q is not a whole number", v))
			}
			*s.to = n
		}
	}
	if v, name := given("bandwidth", flags.Bandwidth, "bandwidth", "H2KVMD_BANDWIDTH"); v != "" {
		b, err := models.ParseBandwidth(v)
		if err != nil {
			return fail(name, fmt.Errorf("%.40q %w", v, err))
		}
		c.Bandwidth = b
	}
	if v := getenv("H2KVMD_LOG_LEVEL"); v != "" {
		level, err := parseLevel(v)
		if err != nil {
			return fail("H2KVMD_LOG_LEVEL", err)
		}
		c.LogLevel = level
	}
	if flags.Debug {
		c.LogLevel = slog.LevelDebug
	}
	return nil
}

func parseLevel(s string) (slog.Level, error) {
	switch s {
	case "debug":
		return slog.LevelDebug, nil
	case DefaultLogLevel:
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("is %.40q, want debug, info, warn or error", s)
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// check judges what is in force in the end, wherever it comes from. Key is that
// of the setting which is at fault.
func (c *reader) check() (key string, err error) {
	if _, _, err := net.SplitHostPort(c.Addr); err != nil {
		return "addr", fmt.Errorf("addr %q: want HOST:PORT: %w", c.Addr, err)
	}
	if c.MaxRunning < 1 || c.MaxRunning > MaxRunningLimit {
		return "max_running_jobs", fmt.Errorf("max_running_jobs is %d, want 1 to %d", c.MaxRunning, MaxRunningLimit)
	}
	for name, n := range map[string]int{"streams_per_host": c.StreamsPerHost, "max_streams": c.MaxStreams} {
		if n < 0 || n > models.MaxStreams {
			return name, fmt.Errorf("%s is %d, want 0 (no limit) to %d", name, n, models.MaxStreams)
		}
	}
	if bad := c.Bandwidth.Check(); bad != "" {
		return "bandwidth", errors.New("bandwidth " + bad)
	}
	if c.LogFormat != logging.Text && c.LogFormat != logging.JSON {
		return "log_format", fmt.Errorf("log_format is %q, want %s or %s", c.LogFormat, logging.Text, logging.JSON)
	}
	switch t := c.TLS; {
	case (t.Cert == "") != (t.Key == ""):
		return "tls", errors.New("tls: cert and key belong together, one of them is missing")
	case t.ClientCA != "" && t.Cert == "":
		return "tls", errors.New("tls: client_ca needs cert and key")
	case len(t.Viewers) > 0 && t.ClientCA == "":
		return "tls", errors.New("tls: viewers needs client_ca")
	}
	return "", nil
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

// beside makes a relative name one beside the configuration file.
func (c *reader) beside(name string) string {
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
		full := prefix + p.Key
		named := func(msg string) bool { // by a walk further in
			return strings.HasPrefix(msg, full+".") || strings.HasPrefix(msg, full+" ") || strings.HasPrefix(msg, "unknown key")
		}
		if e, ok := errors.AsType[*strict.Error](err); ok && !named(e.Msg) {
			return &strict.Error{Line: e.Line, Msg: full + ": " + e.Msg}
		} else if err != nil {
			return err
		}
	}
	return nil
}
