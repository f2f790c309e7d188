package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRoles(t *testing.T) {
	for _, c := range []struct {
		role, need Role
		may        bool
	}{
		{Viewer, Viewer, true}, {Viewer, Operator, false}, {Operator, Viewer, true}, {Operator, Operator, true},
		{"", Viewer, false}, {"", Operator, false}, {"admin", Operator, false}, {Operator, "", false},
	} {
		if c.role.May(c.need) != c.may {
			t.Errorf("%q may %q: %v", c.role, c.need, !c.may)
		}
	}
	if _, err := ParseRole("root"); err == nil || !strings.Contains(err.Error(), "viewer or operator") {
		t.Error(err)
	}
}

func TestAddress(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.1:99": "10.0.0.1", "[::ffff:10.0.0.1]:99": "10.0.0.1", "[2001:db8:1:2:3:4:5:6]:1": "2001:db8:1:2::/64",
		"[fe80::1%eth0]:1": "fe80::/64", "@": "@", "": "",
	} {
		if got := Address(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// TestTokenFile goes through the life of a file.
func TestTokenFile(t *testing.T) {
	ctx := t.Context()
	file := filepath.Join(t.TempDir(), "tokens")
	if tokens, err := ListTokens(file); err != nil || tokens != nil {
		t.Fatalf("no file: %v, %v", tokens, err)
	}
	a, secretA, err := AddToken(ctx, file, "ci", Operator, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	b, secretB, err := AddToken(ctx, file, "board@kvm1", Viewer, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if secretA == secretB || len(secretA) != len(secretPrefix)+43 || !strings.HasPrefix(secretA, secretPrefix) || a.ID == b.ID {
		t.Errorf("secrets %q %q, ids %s %s", secretA, secretB, a.ID, b.ID)
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode is %v, %v", info.Mode(), err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if text := string(data); strings.Contains(text, secretA[4:]) || strings.Contains(text, secretB[4:]) || !strings.HasPrefix(text, "# ") {
		t.Errorf("the file holds a secret or no head: %s", text)
	}
	tokens, err := ListTokens(file)
	if err != nil || len(tokens) != 2 || tokens[0] != a || tokens[1] != b {
		t.Errorf("list: %+v, %v", tokens, err)
	}
	if out := fmt.Sprintf("%v %+v", tokens, tokens); strings.Contains(out, secretA) {
		t.Error("a secret shows")
	}
	for secret, want := range map[string]string{secretA: "ci", secretB: "board@kvm1", secretA + "x": "", secretA[:20]: "", "": ""} {
		if got, ok := find(tokens, secret); ok != (want != "") || got.Name != want {
			t.Errorf("find: %q, %v, want %q", got.Name, ok, want)
		}
	}
	if _, _, err := AddToken(ctx, file, "ci", Viewer, time.Time{}); problem.KindOf(err) != problem.Conflict {
		t.Errorf("same name: %v", err)
	}
	if _, err := RemoveToken(ctx, file, secretA); problem.KindOf(err) != problem.NotFound || strings.Contains(err.Error(), secretA) {
		t.Errorf("remove by secret: %v", err)
	}
	if gone, err := RemoveToken(ctx, file, a.ID); err != nil || gone != a {
		t.Errorf("remove by id: %+v, %v", gone, err)
	}
	if gone, err := RemoveToken(ctx, file, b.Name); err != nil || gone != b {
		t.Errorf("remove by name: %+v, %v", gone, err)
	}
	if tokens, err := ListTokens(file); err != nil || len(tokens) != 0 {
		t.Errorf("empty: %v, %v", tokens, err)
	}
	if names, err := filepath.Glob(filepath.Join(filepath.Dir(file), ".*")); err != nil || len(names) != 0 {
		t.Errorf("left over: %v, %v", names, err)
	}
}

// TestOwner: what root changes stays readable to the daemon's user.
func TestOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	dir := t.TempDir()
	const daemon = 65534
	file := filepath.Join(dir, "tokens")
	owner := func() uint32 {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		return info.Sys().(*syscall.Stat_t).Uid
	}
	if err := os.Chown(dir, daemon, daemon); err != nil {
		t.Fatal(err)
	}
	if _, _, err := AddToken(t.Context(), file, "a", Viewer, time.Time{}); err != nil || owner() != daemon {
		t.Errorf("a new file belongs to %d, not the folder's owner: %v", owner(), err)
	}
	if err := os.Chown(file, 1234, 1234); err != nil {
		t.Fatal(err)
	}
	if _, _, err := AddToken(t.Context(), file, "b", Viewer, time.Time{}); err != nil || owner() != 1234 {
		t.Errorf("a changed file belongs to %d: %v", owner(), err)
	}
	// As the packages have it: root's folder, which the daemon's group reads.
	if err := errors.Join(os.Remove(file), os.Chown(dir, 0, daemon), os.Chmod(dir, 0o750)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"new", "changed"} {
		if _, _, err := AddToken(t.Context(), file, name, Viewer, time.Time{}); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if st := info.Sys().(*syscall.Stat_t); st.Uid != 0 || st.Gid != daemon || info.Mode().Perm() != 0o640 {
			t.Errorf("%s: it is of %d:%d, mode %v", name, st.Uid, st.Gid, info.Mode())
		}
	}
	// A folder of root alone is not opened to root's group.
	own := t.TempDir()
	if _, _, err := AddToken(t.Context(), filepath.Join(own, "tokens"), "a", Viewer, time.Time{}); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(own, "tokens")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v: %v", info.Mode(), err)
	}
}

func TestTokenFileFaults(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := filepath.Join(dir, "good")
	if _, _, err := AddToken(ctx, good, "a", Viewer, time.Time{}); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(good, link); err != nil {
		t.Fatal(err)
	}
	if tokens, err := ListTokens(link); err != nil || len(tokens) != 1 {
		t.Errorf("reading through a link: %v, %v", tokens, err)
	}
	for name, c := range map[string]struct{ file, want string }{
		"readable":  {write("r", "", 0o644), "others may use it (mode 0644)"},
		"shared":    {write("g", "", 0o660), "others may use it (mode 0660)"},
		"writable":  {write("w", "", 0o602), "chmod 600"},
		"broken":    {write("b", "# x\n\nh2k_topsecret\n", 0o600), "line 3: it is not a token"},
		"link":      {link, "a symbolic link is not followed"},
		"folder":    {dir + "/", "it names a folder"},
		"no folder": {dir + "/no/t", "make the folder first"},
		"too large": {write("l", strings.Repeat("#", maxTokenFile+1), 0o600), "it is larger than"},
	} {
		_, _, err := AddToken(ctx, c.file, "b", Viewer, time.Time{})
		if problem.KindOf(err) != problem.Invalid || err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "topsecret") {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	for _, name := range []string{"", "a b", "a\nb", "-x", "ü", strings.Repeat("a", 65), "a,b"} {
		if _, _, err := AddToken(ctx, good, name, Viewer, time.Time{}); problem.KindOf(err) != problem.Invalid {
			t.Errorf("name %q: %v", name, err)
		}
	}
	if _, _, err := AddToken(ctx, good, "x", "admin", time.Time{}); problem.KindOf(err) != problem.Invalid {
		t.Errorf("role: %v", err)
	}
	if _, _, err := AddToken(ctx, good, "x", Viewer, time.Now().Add(-time.Second)); problem.KindOf(err) != problem.Invalid {
		t.Errorf("expired at birth: %v", err)
	}
}

func TestParseTokens(t *testing.T) {
	sum := strings.Repeat("ab", 32)
	entry := func(id, name, role, sum, more string) string {
		return fmt.Sprintf(`{"id":%q,"name":%q,"role":%q,"created":"2026-01-02T03:04:05Z","sha256":%q%s}`, id, name, role, sum, more)
	}
	good := entry("0123abcd", "a", "viewer", sum, "")
	for name, c := range map[string]struct{ in, want string }{
		"two":        {good + "\n" + entry("0123abce", "b", "operator", sum, `,"expires":"2027-01-01T00:00:00+02:00"`), ""},
		"no end":     {good, ""},
		"crlf":       {good + "\r\n\r\n# x\r\n", ""},
		"same name":  {good + "\n" + entry("0123abce", "a", "viewer", sum, ""), "line 2: its name or id"},
		"same id":    {good + "\n" + entry("0123abcd", "b", "viewer", sum, ""), "line 2: its name or id"},
		"unknown":    {entry("0123abcd", "a", "viewer", sum, `,"topsecret":1`), "line 1: it is not a token"},
		"trailing":   {good + " topsecret", "line 1: something follows"},
		"role":       {entry("0123abcd", "a", "topsecret", sum, ""), "line 1: the role is unknown"},
		"id":         {entry("0123ABCD", "a", "viewer", sum, ""), "8 hexadecimal"},
		"short hash": {entry("0123abcd", "a", "viewer", sum[:62], ""), "64 hexadecimal"},
		"bad hash":   {entry("0123abcd", "a", "viewer", sum[:62]+"zz", ""), "64 hexadecimal"},
		"name":       {entry("0123abcd", "topsecret topsecret", "viewer", sum, ""), "line 1: a token's name"},
		"year 1":     {entry("0123abcd", "a", "viewer", sum, `,"expires":"0001-01-01T00:00:00Z"`), "year 1"},
		"array":      {"[]", "line 1"},
	} {
		tokens, err := parseTokens([]byte(c.in))
		if c.want == "" {
			if err != nil || len(tokens) == 0 || tokens[0].Name != "a" {
				t.Errorf("%s: %v, %v", name, tokens, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "topsecret") {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	var many strings.Builder
	for i := range maxTokens + 1 {
		many.WriteString(entry(fmt.Sprintf("%08x", i), fmt.Sprint("t", i), "viewer", sum, "") + "\n")
	}
	if _, err := parseTokens([]byte(many.String())); err == nil || !strings.Contains(err.Error(), "more than 1000") {
		t.Errorf("too many: %v", err)
	}
}

// TestConcurrentChanges: of changes at the same time none is lost.
func TestConcurrentChanges(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens")
	const n = 8
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if _, _, err := AddToken(t.Context(), file, fmt.Sprint("t", i), Viewer, time.Time{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if tokens, err := ListTokens(file); err != nil || len(tokens) != n {
		t.Errorf("%d tokens, %v", len(tokens), err)
	}
	// Somebody holds the lock: the wait ends with the context.
	folder, err := os.Open(filepath.Dir(file))
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	if err := lock(t.Context(), folder); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := RemoveToken(ctx, file, "t1"); err == nil || !strings.Contains(err.Error(), "another change is under way") {
		t.Errorf("locked: %v", err)
	}
}

// FuzzParseTokens: what is taken is written and read again the same, and no
// error repeats the input.
func FuzzParseTokens(f *testing.F) {
	f.Add([]byte("# x\n{\"id\":\"0123abcd\",\"name\":\"a\",\"role\":\"viewer\",\"created\":\"2026-01-02T03:04:05Z\",\"sha256\":\"" + strings.Repeat("ab", 32) + "\"}\n"))
	f.Add([]byte("{}"))
	f.Add([]byte("{\"expires\":null}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		tokens, err := parseTokens(data)
		if err != nil {
			return
		}
		out, err := formatTokens(tokens)
		if err != nil {
			// JSON's times end with the year 9999.
			if _, ok := errors.AsType[*json.MarshalerError](err); !ok {
				t.Fatal(err)
			}
			return
		}
		again, err := parseTokens(out)
		if err != nil || len(again) != len(tokens) {
			t.Fatalf("%v: %s", err, out)
		}
		for i := range tokens {
			if !again[i].Created.Equal(tokens[i].Created) || again[i].hash != tokens[i].hash || again[i].Name != tokens[i].Name || again[i].Role != tokens[i].Role {
				t.Fatalf("%+v became %+v", tokens[i], again[i])
			}
		}
	})
}
