package worker_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/drivers/fake"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/worker"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
)

// fakeImages records the calls. A test uses it in one goroutine.
type fakeImages struct {
	dir  string
	log  []string
	away int // the number of calls of Put that fail, as if the image service were down

	slowWrite, slowPut time.Duration // the durations of the snapshot and of the upload
	written            bool
}

func (f *fakeImages) Fetch(_ context.Context, id string) (string, error) {
	f.log = append(f.log, "fetch "+id)
	if id == "none" {
		return "", fault.New(fault.NotFound, "Image %s could not be found.", id)
	}
	path := filepath.Join(f.dir, id+".raw")
	return path, os.WriteFile(path, []byte("content"), 0o600)
}

func (f *fakeImages) Put(_ context.Context, id string, write func(string) error) error {
	f.log = append(f.log, "put "+id)
	if f.slowWrite > 0 && !f.written {
		waittest.Spend(f.slowWrite, "the snapshot")
		f.written = true
		if err := write(filepath.Join(f.dir, id+".qcow2")); err != nil {
			return err
		}
	}
	if f.away > 0 {
		f.away--
		if f.slowPut > 0 {
			waittest.Spend(f.slowPut, "the upload")
		}
		return fault.New(fault.Unavailable, "the image service is away")
	}
	path := filepath.Join(f.dir, id+".qcow2")
	if err := write(path); err != nil {
		return err
	}
	_, err := os.Stat(path)
	return err
}

func (f *fakeImages) Drop(id string) error {
	f.log = append(f.log, "drop "+id)
	return nil
}

func (f *fakeImages) Rotate(_ context.Context, server string, r compute.Rotation) error {
	f.log = append(f.log, fmt.Sprintf("rotate %s of %s in %s: %d", r.Type, server, r.ProjectID, r.Keep))
	return nil
}

// TestImages: with an image service, the driver gets the paths of files. If the host has the server already, a build fetches no image. The file of a snapshot that is no longer wanted is
// dropped.
func TestImages(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	images := &fakeImages{dir: t.TempDir()}
	d, err := fake.New(fake.Config{Host: "h1", Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	s := worker.New(worker.Config{Host: "h1", Driver: func() compute.Driver { return d }, Client: b.client, Images: images, Logger: slog.New(slog.DiscardHandler)})
	size := compute.Resources{VCPUs: 1, MemoryMiB: 64, DiskGiB: 1}
	spec := func(image string) *compute.Spec { return &compute.Spec{ID: "s1", ImageRef: image, Resources: size} }
	for _, step := range []struct {
		name  string
		begin error
		build *compute.Spec
		act   *compute.ActRequest
		says  string
		want  string // the calls of fakeImages
	}{
		{name: "no image", build: spec("none"), says: "Image none could not be found.", want: "fetch none"},
		{name: "build", build: spec("base"), want: "fetch base"},
		{name: "build again", build: spec("none")},
		{name: "snapshot", act: &compute.ActRequest{Action: compute.CreateImage, ImageRef: "snap"}, want: "put snap"},
		{name: "snapshot that is not wanted", begin: compute.ErrStale, act: &compute.ActRequest{Action: compute.CreateImage, ImageRef: "late"}, want: "drop late"},
		{name: "backup", act: &compute.ActRequest{Action: compute.CreateBackup, ImageRef: "daily-1"}, want: "put daily-1"},
		{name: "rotation", act: &compute.ActRequest{Action: compute.CreateBackup, Rotation: &compute.Rotation{Type: "daily", Keep: 2, ProjectID: "p"}}, want: "rotate daily of s1 in p: 2"},
		{name: "rotation that is not wanted", begin: compute.ErrStale, act: &compute.ActRequest{Action: compute.CreateBackup, Rotation: &compute.Rotation{Type: "daily"}}},
		{name: "rescue with no image", act: &compute.ActRequest{Action: compute.Rescue, ImageRef: "none"}, says: "could not be found", want: "fetch none"},
		{name: "rescue", act: &compute.ActRequest{Action: compute.Rescue, ImageRef: "help"}, want: "fetch help"},
		{name: "rescue again", act: &compute.ActRequest{Action: compute.Rescue, ImageRef: "none"}},
		{name: "unrescue", act: &compute.ActRequest{Action: compute.Unrescue}},
		{name: "rebuild with no image", act: &compute.ActRequest{Action: compute.Rebuild, Spec: spec("none"), Running: true}, says: "could not be found", want: "fetch none"},
		{name: "build again after the failed rebuild", build: spec("none")}, // the server still exists
		{name: "rebuild", act: &compute.ActRequest{Action: compute.Rebuild, Spec: spec("new"), Running: true}, want: "fetch new"},
		{name: "shelve", act: &compute.ActRequest{Action: compute.Shelve, ImageRef: "shelved", Running: true}, want: "put shelved"},
		{name: "offload", act: &compute.ActRequest{Action: compute.ShelveOffload}},
		{name: "unshelve with no image", act: &compute.ActRequest{Action: compute.Unshelve, Spec: spec("none"), ImageRef: "shelved", Placed: true}, says: "could not be found", want: "fetch none"},
		{name: "unshelve that is not wanted", begin: compute.ErrStale, act: &compute.ActRequest{Action: compute.Unshelve, Spec: spec("shelved"), ImageRef: "shelved", Placed: true}},
		{name: "unshelve", act: &compute.ActRequest{Action: compute.Unshelve, Spec: spec("shelved"), ImageRef: "shelved", Placed: true}, want: "fetch shelved"},
	} {
		b.set(func() { b.begin = step.begin })
		var err error
		if step.build != nil {
			_, err = s.Build(t.Context(), &compute.BuildRequest{Spec: *step.build, Token: "op/1"})
		} else {
			step.act.ServerID, step.act.Token = "s1", "op/1"
			_, err = s.Act(t.Context(), step.act)
		}
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if step.begin == nil {
			if end := get(t, b.ended); !strings.Contains(end.Error, step.says) || (end.Error == "") != (step.says == "") {
				t.Errorf("%s: reported %q, want %q", step.name, end.Error, step.says)
			}
		}
		if got := strings.Join(images.log, ", "); got != step.want {
			t.Errorf("%s: the calls about images are %q, want %q", step.name, got, step.want)
		}
		images.log = nil
	}
}

// TestUploadRetry: while the image service is down, an upload is repeated for the retry time. The retry time begins after the snapshot, and again after an upload that takes longer than the
// retry time. If no upload has succeeded by then, the action fails, the file is dropped, and the server runs as before.
func TestUploadRetry(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		away       int
		retry      time.Duration
		says       string
		want       string
		write, put time.Duration // the durations of the snapshot and of the upload
	}{
		{0, 0, "", "put snap", 0, 0},
		{1, 0, "away", "put snap, drop snap", 0, 0},
		{10, time.Minute, "", strings.Repeat("put snap, ", 10) + "put snap", 0, 0},
		{1000, 30 * time.Second, "away", "", 0, 0},
		{2, 30 * time.Second, "", "put snap, put snap, put snap", time.Hour, 0},
		{2, 30 * time.Second, "", "put snap, put snap, put snap", 0, time.Hour},
		{1000, 0, "away", "put snap, drop snap", time.Hour, time.Hour},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t)
			images := &fakeImages{dir: t.TempDir(), away: tt.away, slowWrite: tt.write, slowPut: tt.put}
			d, err := fake.New(fake.Config{Host: "h1", Dir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if err := d.Spawn(t.Context(), compute.Spec{ID: "s1", Resources: compute.Resources{VCPUs: 1, MemoryMiB: 64, DiskGiB: 1}}); err != nil {
				t.Fatal(err)
			}
			s := worker.New(worker.Config{Host: "h1", Driver: func() compute.Driver { return d }, Client: b.client, Images: images, UploadRetry: tt.retry, Logger: slog.New(slog.DiscardHandler)})
			began := time.Now()
			if _, err := s.Act(t.Context(), &compute.ActRequest{ServerID: "s1", Token: "op/1", Action: compute.Shelve, ImageRef: "snap", Upload: true, Running: true}); err != nil {
				t.Fatal(err)
			}
			if end := get(t, b.ended); !strings.Contains(end.Error, tt.says) || (end.Error == "") != (tt.says == "") || end.Refused {
				t.Errorf("away %d times: reported %+v", tt.away, end)
			}
			if got := strings.Join(images.log, ", "); tt.want != "" && got != tt.want || tt.want == "" && !strings.HasSuffix(got, "put snap, drop snap") || tt.write == 0 && tt.put == 0 && time.Since(began) > tt.retry {
				t.Errorf("away %d times: %s after %v", tt.away, got, time.Since(began))
			}
			if is, err := d.Get(t.Context(), "s1"); err != nil || (is.Power == compute.Running) != (tt.says != "") {
				t.Errorf("away %d times: the server is %s, %v", tt.away, is.Power, err)
			}
		})
	}
}

// TestNoUpload: a host that cannot upload an image refuses the action before it changes the server.
func TestNoUpload(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for _, tt := range []struct {
		images worker.Images
		says   string
	}{
		{nil, "host h1 has no image service, so image snap cannot be uploaded"},
		{&fakeImages{dir: t.TempDir()}, "image-files"},
	} {
		for _, a := range []compute.Action{compute.Shelve, compute.CreateImage, compute.CreateBackup} {
			d := &noFiles{fakeDriver{servers: map[string]bool{}}} // calls of other methods panic
			s := worker.New(worker.Config{Host: "h1", Driver: func() compute.Driver { return d }, Client: b.client, Images: tt.images, Logger: slog.New(slog.DiscardHandler)})
			if _, err := s.Act(t.Context(), &compute.ActRequest{ServerID: "s1", Token: "op/1", Action: a, ImageRef: "snap", Upload: true, Running: true}); err != nil {
				t.Fatal(err)
			}
			if end := get(t, b.ended); !strings.Contains(end.Error, tt.says) || !end.Refused {
				t.Errorf("%s: reported %+v", a, end)
			}
			if tt.images != nil {
				continue
			}
			if _, err := s.Act(t.Context(), &compute.ActRequest{ServerID: "s1", Token: "op/1", Action: compute.CreateBackup, Rotation: &compute.Rotation{Type: "daily"}}); err != nil {
				t.Fatal(err)
			}
			if end := get(t, b.ended); !strings.Contains(end.Error, "older backups cannot be removed") {
				t.Errorf("rotation: reported %+v", end)
			}
		}
	}
}

// TestNoImageFiles: with an image service, a driver without the capability image-files builds no server.
func TestNoImageFiles(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for _, caps := range [][]driver.Capability{nil, {compute.CapImageFiles}} {
		images := &fakeImages{dir: t.TempDir()}
		d := &noFiles{fakeDriver{servers: map[string]bool{}, caps: caps}}
		s := worker.New(worker.Config{Host: "h1", Driver: func() compute.Driver { return d }, Client: b.client, Images: images, Logger: slog.New(slog.DiscardHandler)})
		if _, err := s.Build(t.Context(), &compute.BuildRequest{Spec: compute.Spec{ID: "s1", ImageRef: "base"}, Token: "op/1"}); err != nil {
			t.Fatal(err)
		}
		end := get(t, b.ended)
		if able := len(caps) > 0; able != (end.Error == "") || able != slices.Contains(d.did(), "spawn s1") || !able && !strings.Contains(end.Error, "image-files") {
			t.Errorf("with %v: reported %q, the driver did %q", caps, end.Error, d.did())
		}
	}
}

// noFiles is a driver without servers.
type noFiles struct{ fakeDriver }

func (*noFiles) Get(_ context.Context, id string) (compute.Instance, error) {
	return compute.Instance{}, fault.New(fault.NotFound, "server %s does not exist", id)
}

// TestRemoveImage: the driver removes the image of a shelve. The removal never stops other work on the server, and waits for it. While the driver is down, nothing is reported, because the conductor
// repeats the request. A driver without the capability is reported.
func TestRemoveImage(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	dir := t.TempDir()
	d, err := fake.New(fake.Config{Host: "h1", Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	slow := &slowImages{Driver: d, entered: make(chan struct{}), proceed: make(chan struct{})}
	s := worker.New(worker.Config{Host: "h1", Driver: func() compute.Driver { return slow }, Client: b.client, Logger: slog.New(slog.DiscardHandler)})
	file := filepath.Join(dir, "images", "snap")
	exists := func(want bool, when string) {
		t.Helper()
		if _, err := os.Stat(file); (err == nil) != want {
			t.Errorf("%s: the image: %v, want existence %v", when, err, want)
		}
	}
	remove := func(token string) {
		t.Helper()
		if _, err := s.RemoveImage(t.Context(), &compute.RemoveImageRequest{ServerID: "s1", ImageRef: "snap", Token: token}); err != nil {
			t.Fatal(err)
		}
	}
	reported := func(token, says string) {
		t.Helper()
		if end := get(t, b.ended); end.Token != token || !strings.Contains(end.Error, says) || (end.Error == "") != (says == "") {
			t.Errorf("reported %q for %s, want %q for %s", end.Error, end.Token, says, token)
		}
	}
	size := compute.Resources{VCPUs: 1, MemoryMiB: 64, DiskGiB: 1}
	if _, err := s.Build(t.Context(), &compute.BuildRequest{Spec: compute.Spec{ID: "s1", ImageRef: "cirros", Resources: size}, Token: "build/1"}); err != nil {
		t.Fatal(err)
	}
	reported("build/1", "")

	shelved := make(chan error)
	go func() {
		_, err := s.Act(t.Context(), &compute.ActRequest{ServerID: "s1", Action: compute.Shelve, ImageRef: "snap", Running: true, Token: "shelve/1"})
		shelved <- err
	}()
	get(t, slow.entered)
	remove("remove/1") // dropped, because the shelve still runs
	close(slow.proceed)
	if err := get(t, shelved); err != nil {
		t.Fatal(err)
	}
	reported("shelve/1", "")
	exists(true, "after a removal during the shelve")

	b.set(func() { b.begin = compute.ErrStale })
	remove("remove/2")
	exists(true, "after a removal that is not wanted")
	b.set(func() { b.begin = nil })

	for token, tt := range map[string]struct {
		err  error
		says string
	}{
		"remove/3": {fault.New(fault.Timeout, "the driver does not answer"), ""},
		"remove/4": {fault.New(fault.Unimplemented, "the driver does not have the capability remove-image"), "which stays on host h1: the driver does not have the capability remove-image"},
	} {
		slow.err = tt.err
		remove(token)
		if tt.says != "" {
			reported(token, tt.says)
		}
		exists(true, "after "+tt.err.Error())
	}
	slow.err = nil
	for _, token := range []string{"remove/5", "remove/6"} { // a repeated request
		remove(token)
		reported(token, "")
		exists(false, token)
	}

	// Other work on the server stops a removal that hangs.
	slow.hangs = make(chan struct{})
	removed := make(chan error)
	go func() {
		_, err := s.RemoveImage(t.Context(), &compute.RemoveImageRequest{ServerID: "s1", ImageRef: "snap", Token: "remove/7"})
		removed <- err
	}()
	get(t, slow.hangs)
	if _, err := s.Act(t.Context(), &compute.ActRequest{ServerID: "s1", Action: compute.Start, Token: "start/1"}); err != nil {
		t.Fatal(err)
	}
	reported("start/1", "")
	if err := get(t, removed); err != nil {
		t.Errorf("the removal that was stopped: %v", err)
	}
	if len(b.ended) > 0 {
		t.Errorf("further report: %+v", <-b.ended)
	}
}

// slowImages is a driver whose snapshots wait for the test, and whose removals of images may fail.
type slowImages struct {
	*fake.Driver

	entered, proceed chan struct{}
	hangs            chan struct{} // closed when a removal begins to hang; nil: no removal hangs
	err              error
}

func (d *slowImages) Snapshot(ctx context.Context, id, image string) error {
	close(d.entered)
	<-d.proceed
	return d.Driver.Snapshot(ctx, id, image)
}

func (d *slowImages) RemoveImage(ctx context.Context, image string) error {
	if d.err != nil {
		return d.err
	}
	if d.hangs != nil {
		close(d.hangs)
		<-ctx.Done()
		return ctx.Err()
	}
	return d.Driver.RemoveImage(ctx, image)
}
