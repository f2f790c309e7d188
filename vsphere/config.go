package vsphere

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

// Config says which vCenter or ESXi host to talk to. However it is printed,
// logged or marshalled, the password is not in it.
type Config struct {
	URL      *url.URL // https://host[:port]/sdk, without credentials
	Username string
	Password string `json:"-" yaml:"-"`
	// Insecure accepts any certificate.
	Insecure bool
	// Datacenter is the name of the datacenter that relative VM paths are
	// looked up in; empty means all.
	Datacenter string
	// CAFiles are PEM files with root certificates that are trusted besides
	// the system's.
	CAFiles []string
	// KnownHostsFile names a file of lines "host[:port] thumbprint", as govc
	// writes it; several are separated by os.PathListSeparator. A file that
	// does not exist is an empty one.
	KnownHostsFile string
	// Thumbprint is that of a certificate of the server itself, SHA-1 or
	// SHA-256, which is trusted besides; empty for none.
	Thumbprint string
}

// ConfigFromEnv reads the variables that govc reads: GOVC_URL (with or without
// scheme, /sdk and credentials), GOVC_USERNAME and GOVC_PASSWORD (which win
// over the URL's), GOVC_INSECURE, GOVC_DATACENTER, GOVC_TLS_CA_CERTS and
// GOVC_TLS_KNOWN_HOSTS. Errors are problem.Invalid.
func ConfigFromEnv(getenv func(string) string) (Config, error) {
	const what = "read the vCenter settings from the environment"
	raw := getenv("GOVC_URL")
	if strings.TrimSpace(raw) == "" {
		return Config{}, problem.New(problem.Invalid, what, errors.New("GOVC_URL is not set"),
			"set GOVC_URL to the vCenter's address, GOVC_USERNAME and GOVC_PASSWORD to the credentials")
	}
	u, user, pass, err := ParseURL(raw)
	if err != nil {
		return Config{}, err
	}
	cfg := Config{
		URL: u, Username: user, Password: pass,
		Datacenter:     getenv("GOVC_DATACENTER"),
		KnownHostsFile: getenv("GOVC_TLS_KNOWN_HOSTS"),
	}
	if v := getenv("GOVC_USERNAME"); v != "" {
		cfg.Username = v
	}
	if v := getenv("GOVC_PASSWORD"); v != "" {
		cfg.Password = v
	}
	if v := strings.TrimSpace(getenv("GOVC_INSECURE")); v != "" {
		if cfg.Insecure, err = strconv.ParseBool(v); err != nil {
			return Config{}, problem.New(problem.Invalid, what, fmt.Errorf("GOVC_INSECURE is %q", v),
				"set GOVC_INSECURE to 1 or 0")
		}
	}
	for _, f := range filepath.SplitList(getenv("GOVC_TLS_CA_CERTS")) {
		if f != "" {
			cfg.CAFiles = append(cfg.CAFiles, f)
		}
	}
	return cfg, nil
}

var hasScheme = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*://`)

// ParseURL reads a server's address: scheme (https by default), credentials
// and path (/sdk by default) are optional. The URL it returns has no
// credentials. Errors are problem.Invalid and never quote s, which may hold a
// password.
func ParseURL(s string) (u *url.URL, user, pass string, err error) {
	fail := func(why string) (*url.URL, string, string, error) {
		return nil, "", "", problem.New(problem.Invalid, "read the vCenter URL", errors.New(why),
			"write it as https://host/sdk and give user name and password by GOVC_USERNAME and GOVC_PASSWORD")
	}
	s = strings.TrimSpace(s)
	if s == "" {
		return fail("it is empty")
	}
	if !hasScheme.MatchString(s) {
		s = "https://" + s
	}
	// net/url's error quotes the part it does not like, which can be a piece
	// of the password.
	u, perr := url.Parse(s)
	if perr != nil {
		return fail("it is not a URL, or has characters in it that need escaping")
	}
	switch {
	case u.Scheme != "https" && u.Scheme != "http":
		return fail("its scheme is neither https nor http")
	case u.Hostname() == "":
		return fail("it names no host")
	case u.RawQuery != "" || u.Fragment != "" || strings.Contains(u.Path, "@"):
		// An unescaped ?, # or / in a password ends up here; carrying on
		// would send the rest of it to a wrong host.
		return fail("it has more in it than host, credentials and path")
	}
	if u.User != nil {
		user = u.User.Username()
		pass, _ = u.User.Password()
		u.User = nil
	}
	u.Path = strings.TrimRight(u.Path, "/")
	u.RawPath = ""
	if u.Path == "" {
		u.Path = "/sdk"
	}
	return u, user, pass, nil
}

// address is the URL as it may be shown.
func (c Config) address() string {
	if c.URL == nil {
		return ""
	}
	u := *c.URL
	u.User = nil
	return u.String()
}

// String names server and user.
func (c Config) String() string {
	if c.Username == "" {
		return c.address()
	}
	return c.Username + " at " + c.address()
}

// Format is String for every verb: %#v would print the fields.
func (c Config) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, c.String()) }

// LogValue is part of slog.LogValuer.
func (c Config) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("url", c.address()),
		slog.String("user", c.Username),
		slog.Bool("insecure", c.Insecure),
	)
}

// MarshalJSON gives the settings without the password.
func (c Config) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		URL        string   `json:"url"`
		Username   string   `json:"username"`
		Insecure   bool     `json:"insecure"`
		Datacenter string   `json:"datacenter,omitempty"`
		CAFiles    []string `json:"ca_files,omitempty"`
		KnownHosts string   `json:"known_hosts_file,omitempty"`
	}{c.address(), c.Username, c.Insecure, c.Datacenter, c.CAFiles, c.KnownHostsFile})
}
