package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/daemon/store"
	"github.com/hyper2kvm/hyper2kvm/daemon/store/storetest"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

// victim is set in the process that TestKill kills.
const victim = "H2KVM_TEST_STATE_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(victim); dir != "" {
		scribble(dir)
	}
	goleak.VerifyTestMain(m)
}

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, t.TempDir()) })
}

// TestKeeps: what was stored is there after the next start.
func TestKeeps(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if err := s.Insert(t.Context(), storetest.Record("a")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), dir); problem.KindOf(err) != problem.Conflict || !strings.Contains(err.Error(), "in use by another hyper2kvmd") {
		t.Errorf("a second process: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	recs, err := s.Load(t.Context(), store.Filter{})
	if err != nil || len(recs) != 1 || recs[0].Job.Definition.VMPath != "/dc/vm/a" {
		t.Errorf("%+v, %v", recs, err)
	}
	for name, mode := range map[string]fs.FileMode{FileName: 0o600, FileName + ".lock": 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

// TestUpgrade brings a database of every earlier version up to date.
func TestUpgrade(t *testing.T) {
	names, err := fs.Glob(files, "migrations/*.sql")
	if err != nil {
		t.Fatal(err)
	}
	for version := 1; version < len(names); version++ {
		dir := t.TempDir()
		db, err := sql.Open("sqlite", filepath.Join(dir, FileName))
		if err != nil {
			t.Fatal(err)
		}
		old := &Store{db: db}
		if err := old.apply(t.Context(), names[:version], 0); err != nil {
			t.Fatal(err)
		}
		body, err := encode(storetest.Record("old").Job)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(`INSERT INTO jobs (id, status, output_path, body) VALUES ('old', 'pending', '/out/old', ?)`, body); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		s := open(t, dir)
		recs, err := s.Load(t.Context(), store.Filter{Queue: true})
		if err != nil || len(recs) != 1 || recs[0].Job.Definition.OutputPath != "/out/old" {
			t.Errorf("version %d: %+v, %v", version, recs, err)
		}
		if err := s.Append(t.Context(), []models.Event{{ID: 1, JobID: "old", Type: models.LogEvent}}); err != nil {
			t.Errorf("version %d: %v", version, err)
		}
	}
}

// TestRefuses: what is not this daemon's database is left as it is.
func TestRefuses(t *testing.T) {
	exec := func(t *testing.T, path, query string) {
		t.Helper()
		db, err := sql.Open("sqlite", path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(query); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		make func(t *testing.T, path string)
		want string
	}{
		"newer": {func(t *testing.T, path string) { exec(t, path, "PRAGMA user_version = 99") }, "knows up to"},
		"newer backup": {func(t *testing.T, path string) {
			exec(t, path, "PRAGMA journal_mode = delete")
			exec(t, path, "PRAGMA user_version = 99")
		}, "knows up to"},
		"foreign": {func(t *testing.T, path string) { exec(t, path, "PRAGMA application_id = 7; CREATE TABLE x (y)") }, "another program"},
		"text": {func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte("not a database, but long enough"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "no SQLite database"},
		"damaged": {func(t *testing.T, path string) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for at := 4096; at < len(data); at += 4096 {
				copy(data[at:], bytes.Repeat([]byte{0xa5}, 64))
			}
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}, ""},
		"link": {func(t *testing.T, path string) {
			if err := os.Rename(path, path+"x"); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(path+"x", path); err != nil {
				t.Fatal(err)
			}
		}, "symbolic link"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, FileName)
			if name != "foreign" {
				s := open(t, dir)
				if err := s.Insert(t.Context(), storetest.Record("a")); err != nil {
					t.Fatal(err)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
			tc.make(t, path)
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Open(t.Context(), dir)
			p := new(problem.Error)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("error %v", err)
			} else if pe, ok := err.(*problem.Error); !ok || pe.Advice == "" { //nolint:errorlint // Open returns it bare
				t.Errorf("no advice: %v %v", err, p)
			}
			if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
				t.Errorf("it was changed, %v", err)
			}
		})
	}
}

// TestRefusesAfterKill: what a killed process left in the write-ahead log
// stays there, too.
func TestRefusesAfterKill(t *testing.T) {
	for name, tc := range map[string]struct {
		query  string
		damage bool
		want   string
	}{
		"newer":   {query: "PRAGMA user_version = 99", want: "knows up to"},
		"damaged": {query: "PRAGMA user_version", damage: true},
	} {
		t.Run(name, func(t *testing.T) {
			from, dir := t.TempDir(), t.TempDir()
			if err := open(t, from).Close(); err != nil { // all of it is in the database
				t.Fatal(err)
			}
			s := open(t, from)
			if err := s.Insert(t.Context(), storetest.Record("a")); err != nil {
				t.Fatal(err)
			}
			if _, err := s.db.Exec(tc.query); err != nil {
				t.Fatal(err)
			}
			left := map[string][]byte{}
			for _, file := range []string{FileName, FileName + "-wal", FileName + "-shm"} {
				data, err := os.ReadFile(filepath.Join(from, file))
				if err != nil {
					t.Fatal(err)
				}
				if tc.damage && file == FileName {
					for at := 4096; at < len(data); at += 4096 {
						copy(data[at:], bytes.Repeat([]byte{0xa5}, 64))
					}
				}
				if err := os.WriteFile(filepath.Join(dir, file), data, 0o600); err != nil {
					t.Fatal(err)
				}
				left[file] = data
			}
			if len(left[FileName+"-wal"]) == 0 {
				t.Fatal("the log is empty")
			}
			if _, err := Open(t.Context(), dir); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("error %v", err)
			}
			for _, file := range []string{FileName, FileName + "-wal"} {
				if after, err := os.ReadFile(filepath.Join(dir, file)); err != nil || !bytes.Equal(after, left[file]) {
					t.Errorf("%s was changed, %v", file, err)
				}
			}
		})
	}
}

func TestBackup(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if err := s.Insert(t.Context(), storetest.Record("a")); err != nil {
		t.Fatal(err)
	}
	copied := t.TempDir()
	file := filepath.Join(copied, FileName)
	if err := Backup(t.Context(), dir, file); err != nil {
		t.Fatal(err)
	}
	if err := Backup(t.Context(), dir, file); problem.KindOf(err) != problem.Conflict {
		t.Errorf("it is there: %v", err)
	}
	if err := Backup(t.Context(), t.TempDir(), filepath.Join(copied, "x")); problem.KindOf(err) != problem.NotFound {
		t.Errorf("nothing to back up: %v", err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	recs, err := open(t, copied).Load(t.Context(), store.Filter{})
	if err != nil || len(recs) != 1 {
		t.Errorf("%+v, %v", recs, err)
	}
}

// TestWriters: eight at once, none is told that the database is locked.
func TestWriters(t *testing.T) {
	s := open(t, t.TempDir())
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 20 {
				id := fmt.Sprintf("%d-%d", w, i)
				if err := s.Insert(t.Context(), storetest.Record(id)); err != nil {
					t.Error(err)
				}
				if _, err := s.Transition(t.Context(), id, models.Pending, models.Running, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	count, err := s.Count(t.Context())
	if err != nil || count[models.Running] != 160 {
		t.Errorf("%v, %v", count, err)
	}
}

// scribble inserts and changes jobs until it is killed, and tells each change
// that the store has acknowledged.
func scribble(dir string) {
	s, err := Open(context.Background(), dir)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for i := 0; ; i++ {
		id := fmt.Sprintf("%06d", i)
		if err := s.Insert(context.Background(), storetest.Record(id)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(id, models.Pending)
		if _, err := s.Transition(context.Background(), id, models.Pending, models.Running, nil); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(id, models.Running)
	}
}

// TestKill kills a process in the middle of its writing, many times: what it
// had been told is there.
func TestKill(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for round := range 8 {
		dir := t.TempDir()
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), victim+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		told := map[string]string{}
		var text []byte
		buf := make([]byte, 256)
		for len(text) < 500*(round+1) {
			n, err := out.Read(buf)
			if err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			text = append(text, buf[:n]...)
		}
		if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		lines := strings.Split(string(text), "\n")
		for _, line := range lines[:len(lines)-1] {
			id, status, ok := strings.Cut(line, " ")
			if !ok {
				t.Fatalf("it says %q", line)
			}
			told[id] = status
		}
		s := open(t, dir)
		recs, err := s.Load(t.Context(), store.Filter{})
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]models.Status{}
		for _, r := range recs {
			found[r.Job.ID] = r.Job.Status
		}
		for id, status := range told {
			if got := string(found[id]); got != status && got != string(models.Running) {
				t.Errorf("round %d: %s is %q, want %s", round, id, got, status)
			}
		}
	}
}

func BenchmarkStore(b *testing.B) {
	s := open(b, b.TempDir())
	ctx := context.Background()
	for i := range 11_000 {
		r := storetest.Record(fmt.Sprintf("%06d", i))
		if i < 10_000 {
			r.Job.Status = models.Completed
		}
		if err := s.Insert(ctx, r); err != nil {
			b.Fatal(err)
		}
	}
	for name, f := range map[string]func(i int) error{
		"one": func(i int) error {
			_, err := s.Load(ctx, store.Filter{IDs: []string{fmt.Sprintf("%06d", i%11_000)}})
			return err
		},
		"status 50": func(int) error {
			_, err := s.Load(ctx, store.Filter{Status: []models.Status{models.Pending}, Limit: 50})
			return err
		},
		"queue": func(int) error {
			_, err := s.Load(ctx, store.Filter{Status: []models.Status{models.Pending}, Owner: "me", Queue: true, Limit: 1})
			return err
		},
		"count": func(int) error { _, err := s.Count(ctx); return err },
		"transition": func(int) error {
			_, err := s.Transition(ctx, "010500", models.Pending, models.Pending, nil)
			return err
		},
	} {
		b.Run(name, func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				if err := f(i); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
