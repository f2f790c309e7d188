package export

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/hyper2kvm/hyper2kvm/internal/output"
	"github.com/hyper2kvm/hyper2kvm/internal/ovf"
)

// put writes a small file that is made here.
func (r *run) put(name string, role output.Role, data []byte) (output.File, error) {
	if err := r.plan.Folder.Put(name, data); err != nil {
		return output.File{}, err
	}
	return madeHere(name, role, data), nil
}

func madeHere(name string, role output.Role, data []byte) output.File {
	sum := sha256.Sum256(data)
	return output.File{
		Name: name, Role: role, Size: int64(len(data)),
		SHA256: hex.EncodeToString(sum[:]), Proof: output.ProofLocal,
	}
}

// manifestText is the .mf of files.
func manifestText(files []output.File) ([]byte, error) {
	entries := make([]ovf.Entry, len(files))
	for i, f := range files {
		entries[i] = ovf.Entry{Algorithm: ovf.SHA256, Name: f.Name, Digest: f.SHA256}
	}
	var b bytes.Buffer
	if err := ovf.WriteManifest(&b, entries); err != nil {
		return nil, fmt.Errorf("write manifest: %w", err)
	}
	return b.Bytes(), nil
}
