package progress

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

func TestSnapshotComesFromPositions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := NewTracker(nil)
		thin := tr.Add("thin", 1000)
		fat := tr.Add("fat", 1000)
		if s := tr.Snapshot(); s.Percent != 0 || s.Total != 2000 || s.Remaining >= 0 || s.FilesDone != 0 {
			t.Fatalf("at the start: %+v", s)
		}
		thin.SetState(Downloading)
		thin.Took(10)
		thin.Holds(10, 500) // ten bytes of stream took it half way
		time.Sleep(time.Second)
		s := tr.Snapshot()
		if s.Percent != 25 || s.Received != 10 || s.BytesPerSecond != 10 || s.Current != "thin" {
			t.Fatalf("after a second: %+v", s)
		}
		if s.Remaining != 3*time.Second { // 1500 to go at 500 a second
			t.Fatalf("time left: %v", s.Remaining)
		}
		thin.Finish(Done, 20)
		fat.Finish(Kept, 700)
		s = tr.Snapshot()
		if s.Percent != 100 || s.Total != 720 || s.Received != 720 || s.FilesDone != 2 || s.Remaining != 0 {
			t.Fatalf("at the end: %+v", s)
		}
	})
}

func TestFilesCountByTheirWeights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := NewTracker(nil)
		full, empty, unknown := tr.Add("full", 1000), tr.Add("empty", 1e6), tr.Add("unknown", 0)
		full.Weigh(900)
		empty.Weigh(50)
		tr.Snapshot()
		time.Sleep(time.Second)
		empty.Holds(1, 5e5)
		if s := tr.Snapshot(); int(s.Percent) != 49 {
			t.Fatalf("one weight is missing: %v %%", s.Percent)
		}
		unknown.Weigh(50)
		full.Holds(100, 100)
		// 90 and 25 of 1000 in a second; the slowest has nine times that to go.
		if s := tr.Snapshot(); s.Percent != 11.5 || s.Remaining != 9*time.Second {
			t.Fatalf("by weight: %v %%, %v left", s.Percent, s.Remaining)
		}
		unknown.SetCapacity(20)
		unknown.Holds(20, 20)
		empty.Finish(Done, 2)
		full.Holds(1000, 1000)
		if s := tr.Snapshot(); s.Percent != 100 {
			t.Fatalf("at the end: %v %%", s.Percent)
		}
	})
}

func TestTimeLeftIsThatOfTheSlowest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := NewTracker(nil)
		fast, slow := tr.Add("fast", 1000), tr.Add("slow", 1000)
		tr.Snapshot()
		time.Sleep(time.Second)
		fast.Holds(500, 500)
		slow.Holds(10, 10)
		if s := tr.Snapshot(); s.Remaining != 99*time.Second {
			t.Fatalf("time left: %v", s.Remaining)
		}
	})
}

func TestRateForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := NewTracker(nil)
		h := tr.Add("disk", 1<<40)
		for range 100 {
			h.Took(1000)
			tr.Snapshot()
			time.Sleep(100 * time.Millisecond)
		}
		if s := tr.Snapshot(); s.BytesPerSecond < 9000 || s.BytesPerSecond > 11000 {
			t.Fatalf("rate %d", s.BytesPerSecond)
		}
		for range 200 {
			tr.Snapshot()
			time.Sleep(100 * time.Millisecond)
		}
		if s := tr.Snapshot(); s.BytesPerSecond != 0 {
			t.Fatalf("rate %d after a long pause", s.BytesPerSecond)
		}
		if len(tr.samples) > 110 {
			t.Fatalf("%d samples are kept", len(tr.samples))
		}
	})
}

func TestEventsReachTheSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []Event
		tr := NewTracker(SinkFunc(func(e Event) { got = append(got, e) }))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		tr.Enter(Exporting)
		tr.Enter(Exporting)
		tr.Remark(slog.LevelWarn, "retried", slog.Int("attempt", 2))
		tr.Run(ctx, 300*time.Millisecond)
		if len(got) != 5 || got[0].Kind != Step || got[1].Kind != Remark || got[4].Kind != Tick {
			t.Fatalf("events %+v", got)
		}
		if got[0].Snapshot.Phase != Exporting || got[1].Message != "retried" || got[1].Level != slog.LevelWarn {
			t.Fatalf("events %+v", got[:2])
		}
	})
}

func TestFileStates(t *testing.T) {
	tr := NewTracker(nil)
	h := tr.Add("disk", 100)
	h.Retry(2, "cut")
	if f := tr.Snapshot().Files[0]; f.State != Retrying || f.Attempt != 2 || f.Problem != "cut" {
		t.Fatalf("%+v", f)
	}
	h.SetState(Downloading)
	if f := tr.Snapshot().Files[0]; f.Problem != "" || f.Attempt != 2 {
		t.Fatalf("%+v", f)
	}
	h.Fail("404")
	if f := tr.Snapshot().Files[0]; f.State != Broken || f.Problem != "404" {
		t.Fatalf("%+v", f)
	}
}
