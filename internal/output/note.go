package output

// noteName is the file of a Note.
const noteName = ".hyper2kvm.note"

// Note is what an export did to the VM and has to undo. It is kept in the
// folder while that is so, for the run after a process that was killed.
type Note struct {
	VM       VM     `json:"vm"`
	Snapshot string `json:"snapshot"` // the name of a snapshot made for the export
}

// PutNote keeps a note, durably.
func (f *Folder) PutNote(n Note) error {
	data, err := marshal(n)
	if err != nil {
		return err
	}
	if err := f.putVia(noteName+PartialSuffix, noteName, data); err != nil {
		return err
	}
	return f.syncDir()
}

// Note gives the note that is kept; false when there is none.
func (f *Folder) Note() (n Note, found bool, err error) {
	found, err = f.readJSON(noteName, &n)
	return n, found, err
}

// DropNote forgets the note.
func (f *Folder) DropNote() error { return f.remove(noteName) }
