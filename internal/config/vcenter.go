package config

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hyper2kvm/hyper2kvm/internal/jobfile/strict"
)

var vcenterKeys = []string{
	"server", "username", "username_file", "username_credential", "username_env",
	"password", "password_file", "password_credential", "password_env",
	"insecure", "datacenter", "ca_certs", "known_hosts",
}

// vcenters reads the map of vCenters. Inline reports that a password stands in
// the file itself.
func (c *reader) vcenters(n *strict.Node) (inline bool, err error) {
	if n.Kind != strict.Map {
		return false, &strict.Error{Line: n.Line, Msg: "want a map of names"}
	}
	c.VCenters = map[string]VCenter{}
	for _, named := range n.Pairs {
		v, plain, err := c.vcenter(named)
		if err != nil {
			return false, err
		}
		c.VCenters[named.Key] = v
		inline = inline || plain
	}
	return inline, nil
}

// vcenter reads one named vCenter.
func (c *reader) vcenter(named strict.Pair) (v VCenter, inline bool, err error) {
	where := "vcenters." + named.Key
	fail := func(line int, format string, args ...any) error {
		return &strict.Error{Line: line, Msg: where + ": " + fmt.Sprintf(format, args...)}
	}
	if named.Key == "" {
		return v, false, fail(named.Line, "the name is empty")
	}
	given := map[string]strict.Pair{} // keys of user name and password
	err = walk(named.Node, where, vcenterKeys, func(p strict.Pair) (err error) {
		switch p.Key {
		case "server":
			v.Server, err = p.Text()
		case "insecure":
			v.Insecure, err = p.Bool()
		case "datacenter":
			v.Datacenter, err = p.Text()
		case "known_hosts":
			v.KnownHosts, err = c.path(p.Node)
		case "ca_certs":
			v.CACerts, err = list(p.Node, c.beside)
		default:
			given[p.Key] = p
			_, err = p.Text()
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
	}
	username, err := c.secret(where, "username", given, fail, named.Line)
	if err != nil {
		return v, false, err
	}
	password, err := c.secret(where, "password", given, fail, named.Line)
	if err != nil {
		return v, false, err
	}
	v.Username, v.Password = username, Secret(password)
	_, inline = given["password"]
	return v, inline, nil
}

// secret finds a user name or password: in the key itself, in a file, in a
// systemd credential, or in an environment variable. Exactly one of the four
// says where.
func (c *reader) secret(where, key string, given map[string]strict.Pair, fail func(int, string, ...any) error, line int) (string, error) {
	ways := []string{key, key + "_file", key + "_credential", key + "_env"}
	var from strict.Pair
	for _, way := range ways {
		p, ok := given[way]
		switch {
		case !ok:
		case from.Node != nil:
			return "", fail(p.Line, "give one of %s and %s, not both", from.Key, way)
		default:
			from = p
		}
	}
	if from.Node == nil {
		return "", fail(line, "%s is missing: give %s", key, strings.Join(ways, ", "))
	}
	value, err := c.credentials.read(c, slices.Index(ways, from.Key), from.Value)
	if errors.Is(err, errNotRead) {
		return "", nil
	}
	if errors.Is(err, errNoDirectory) && c.credentials.lenient {
		c.warn("%s of %s is there for the service only, and was not checked", from.Key, where)
		return "", nil
	}
	if err != nil {
		return "", fail(from.Line, "%s: %s", from.Key, err)
	}
	if value == "" {
		return "", fail(from.Line, "%s: the %s is empty", from.Key, key)
	}
	return value, nil
}

var (
	errNotRead     = errors.New("secrets are not read")
	errNoDirectory = errors.New("CREDENTIALS_DIRECTORY is not set: systemd sets it for a service with LoadCredential=")
)

// credentials reads secrets from where the file says they are.
type credentials struct {
	getenv  func(string) string
	skip    bool // reads none: every one is errNotRead
	lenient bool // what systemd has not provided is a warning
}

// read gives the secret that a way names; the ways are counted as secret lists
// them.
func (cr credentials) read(c *reader, way int, name string) (string, error) {
	if cr.skip {
		return "", errNotRead
	}
	switch way {
	case 1:
		file := c.beside(name)
		value, mode, err := readSecret(file)
		if err == nil && mode.Perm()&0o007 != 0 {
			c.warn("everybody may use the file of a vCenter's credentials: chmod o= %s", file)
		}
		return value, err
	case 2:
		dir := cr.getenv("CREDENTIALS_DIRECTORY")
		if dir == "" {
			return "", errNoDirectory
		}
		if name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
			return "", errors.New("a credential is named without its folder")
		}
		value, _, err := readSecret(filepath.Join(dir, name))
		return value, err
	case 3:
		if name == "" || strings.ContainsAny(name, "=\x00") {
			return "", errors.New("it is not the name of an environment variable")
		}
		value := cr.getenv(name)
		if value == "" {
			// Not named: somebody may have put the secret itself here.
			return "", errors.New("the environment variable is not set")
		}
		return value, nil
	}
	return name, nil
}

// readSecret reads a file that holds a secret; line ends behind it are none of
// it.
func readSecret(file string) (string, fs.FileMode, error) {
	data, mode, err := readBounded(file, maxSecret)
	return strings.TrimRight(string(data), "\r\n"), mode, err
}
