package auth

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

const (
	// secretBytes is the length of a token's random part: 256 bits.
	secretBytes = 32
	// secretPrefix lets people and secret scanners recognise a token.
	secretPrefix = "h2k_"
	// maxSecret bounds what is hashed of an Authorization header, in bytes.
	maxSecret = 256

	// maxTokens bounds a token file; each request is compared with all of it.
	maxTokens = 1000
	// maxTokenFile bounds a token file, in bytes.
	maxTokenFile = 1 << 20
	maxName      = 64
)

// Token is what is kept of a token: everything but its secret.
type Token struct {
	ID      string // 8 hexadecimal digits
	Name    string // unique in its file
	Role    Role
	Created time.Time
	Expires time.Time // zero: never
	hash    [sha256.Size]byte
}

// Expired reports whether the token no longer counts.
func (t Token) Expired(now time.Time) bool { return !t.Expires.IsZero() && !now.Before(t.Expires) }

// newSecret makes a token's secret.
func newSecret() string {
	b := make([]byte, secretBytes)
	rand.Read(b) // never fails
	return secretPrefix + base64.RawURLEncoding.EncodeToString(b)
}

func newID() string {
	b := make([]byte, 4)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// hashSecret is one round of SHA-256. Slow hashes and salts protect secrets
// that can be guessed. 256 random bits cannot, at any speed; a slow hash
// would only let strangers keep the daemon busy with wrong tokens.
func hashSecret(secret string) [sha256.Size]byte { return sha256.Sum256([]byte(secret)) }

// find gives the token that has the secret. It looks at all of them and takes
// the same time whichever it is and however much of a hash agrees.
func find(tokens []Token, secret string) (Token, bool) {
	h := hashSecret(secret)
	found := -1
	for i := range tokens {
		found = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(h[:], tokens[i].hash[:]), i, found)
	}
	if found < 0 {
		return Token{}, false
	}
	return tokens[found], true
}

// checkName refuses names that could not stand in a log line or a command as
// they are.
func checkName(name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("a token's name has 1 to %d characters", maxName)
	}
	if i := strings.IndexFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._@-", r)
	}); i >= 0 || name[0] == '-' {
		return errors.New("a token's name is made of letters, digits and . _ @ -, and does not begin with -")
	}
	return nil
}

// line is a token as a token file holds it: one JSON object a line.
type line struct {
	ID      string     `json:"id"`
	Name    string     `json:"name"`
	Role    string     `json:"role"`
	Created time.Time  `json:"created"`
	Expires *time.Time `json:"expires,omitempty"`
	SHA256  string     `json:"sha256"`
}

const fileHeader = "# Tokens of hyper2kvmd: their hashes, one a line. Change it with `hyper2kvmd token`.\n"

// parseTokens reads a token file. Empty lines and those that begin with "#"
// are passed over. Errors name the line and never what it holds: somebody may
// have put a secret there.
func parseTokens(data []byte) ([]Token, error) {
	var tokens []Token
	names, ids := map[string]bool{}, map[string]bool{}
	s := bufio.NewScanner(bytes.NewReader(data))
	s.Buffer(nil, maxTokenFile+1)
	for n := 1; s.Scan(); n++ {
		text := bytes.TrimSpace(s.Bytes())
		if len(text) == 0 || text[0] == '#' {
			continue
		}
		t, err := parseLine(text)
		switch {
		case err != nil:
		case names[t.Name] || ids[t.ID]:
			err = errors.New("its name or id stands before already")
		case len(tokens) == maxTokens:
			err = fmt.Errorf("more than %d tokens", maxTokens)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		names[t.Name], ids[t.ID] = true, true
		tokens = append(tokens, t)
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("read tokens: %w", err)
	}
	return tokens, nil
}

func parseLine(text []byte) (Token, error) {
	var l line
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&l); err != nil {
		return Token{}, errors.New("it is not a token as `hyper2kvmd token add` writes it")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Token{}, errors.New("something follows the token")
	}
	if err := checkName(l.Name); err != nil {
		return Token{}, err
	}
	role, err := ParseRole(l.Role)
	if err != nil {
		return Token{}, errors.New("the role is unknown") // not repeated, as nothing else
	}
	if id, err := hex.DecodeString(l.ID); err != nil || len(id) != 4 || strings.ToLower(l.ID) != l.ID {
		return Token{}, errors.New("the id is not 8 hexadecimal digits")
	}
	t := Token{ID: l.ID, Name: l.Name, Role: role, Created: l.Created.UTC()}
	sum, err := hex.DecodeString(l.SHA256)
	if err != nil || len(sum) != len(t.hash) {
		return Token{}, errors.New("sha256 is not 64 hexadecimal digits")
	}
	copy(t.hash[:], sum)
	if l.Expires != nil {
		t.Expires = l.Expires.UTC()
		if t.Expires.IsZero() {
			return Token{}, errors.New("the time of expiry is the year 1")
		}
	}
	return t, nil
}

// formatTokens writes what parseTokens reads.
func formatTokens(tokens []Token) ([]byte, error) {
	b := bytes.NewBufferString(fileHeader)
	for _, t := range tokens {
		l := line{ID: t.ID, Name: t.Name, Role: string(t.Role), Created: t.Created, SHA256: hex.EncodeToString(t.hash[:])}
		if !t.Expires.IsZero() {
			l.Expires = &t.Expires
		}
		data, err := json.Marshal(l)
		if err != nil {
			return nil, fmt.Errorf("marshal token: %w", err)
		}
		b.Write(data)
		b.WriteByte('\n')
	}
	return b.Bytes(), nil
}
