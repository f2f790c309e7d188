package jobs

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/logging"
)

// vault holds the passwords of unfinished jobs, in memory only.
type vault struct {
	mu        sync.Mutex
	passwords map[string]string
}

func newVault() *vault { return &vault{passwords: map[string]string{}} }

// take moves the password out of def into the vault. Def's block is replaced
// by a copy, so that the caller's stays as it was.
func (v *vault) take(id string, def *models.Definition) (held bool) {
	if def.VCenter == nil {
		return false
	}
	block := *def.VCenter
	password := block.Password
	block.Password = ""
	def.VCenter = &block
	if password == "" {
		return false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.passwords[id] = password
	return true
}

// give returns def with the password filled in.
func (v *vault) give(id string, def models.Definition) models.Definition {
	v.mu.Lock()
	defer v.mu.Unlock()
	if password, ok := v.passwords[id]; ok && def.VCenter != nil {
		block := *def.VCenter
		block.Password = password
		def.VCenter = &block
	}
	return def
}

// wipe forgets a job's password.
func (v *vault) wipe(id string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.passwords, id)
}

// scrubber takes a job's password out of texts that come from outside: a
// library's error may quote the address it was given, credentials included.
type scrubber struct{ replacer *strings.Replacer }

// minSecret is the shortest password that is looked for, in bytes: replacing
// every "a" would garble texts, and tell the password by that.
const minSecret = 4

func (v *vault) scrubber(id string) scrubber {
	v.mu.Lock()
	password := v.passwords[id]
	v.mu.Unlock()
	if len(password) < minSecret {
		return scrubber{}
	}
	quoted := strconv.Quote(password)
	ascii := strconv.QuoteToASCII(password)
	_, user, _ := strings.Cut(url.UserPassword("", password).String(), ":")
	var pairs []string
	for _, form := range []string{
		password, quoted[1 : len(quoted)-1], ascii[1 : len(ascii)-1],
		url.QueryEscape(password), url.PathEscape(password), user,
		base64.StdEncoding.EncodeToString([]byte(password)),
		fmt.Sprintf("%x", password),
	} {
		pairs = append(pairs, form, logging.Masked)
	}
	return scrubber{strings.NewReplacer(pairs...)}
}

func (s scrubber) text(t string) string {
	if s.replacer == nil {
		return t
	}
	return s.replacer.Replace(t)
}
