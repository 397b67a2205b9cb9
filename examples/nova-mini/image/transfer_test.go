package image_test

import (
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/image"
	"github.com/armature-go/armature/fault"
)

// store is a fake Glance with one image that a test uploads. If put is set, this function answers the uploads; if it returns false, the store itself answers.
type store struct {
	mu      sync.Mutex
	status  string
	content []byte
	tokens  []string // the tokens of the uploads
	put     func(w http.ResponseWriter, r *http.Request) bool
}

func (s *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPut {
		s.mu.Lock()
		put := s.put
		s.tokens = append(s.tokens, r.Header.Get("X-Auth-Token"))
		s.mu.Unlock()
		if put != nil && put(w, r) {
			return
		}
		content, err := io.ReadAll(r.Body)
		if err != nil {
			return // like Glance, the store drops an incomplete upload
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.status, s.content = image.Active, content
		w.WriteHeader(http.StatusNoContent)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Method == http.MethodDelete {
		s.status = "gone"
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if s.status == "gone" {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	_, _ = fmt.Fprintf(w, `{"id": %q, "status": %q, "size": %d, "disk_format": "qcow2", "os_hash_algo": "sha512", "os_hash_value": "%x"}`, imageID, s.status, len(s.content), sha512.Sum512(s.content))
}

// set sets the status of the image, and the function put.
func (s *store) set(status string, put func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status, s.put = status, put
}

// now returns the present status and content of the image.
func (s *store) now() (status, content string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status, string(s.content)
}

// newUpload returns a store with an image that waits for its upload.
func newUpload(t *testing.T, cfg image.GlanceConfig, put func(w http.ResponseWriter, r *http.Request) bool) (*fakeGlance, *store, *image.Files) {
	t.Helper()
	f, g := newFakeGlanceWith(t, cfg)
	s := &store{status: "queued", put: put}
	f.answer.Store(new(http.HandlerFunc(s.ServeHTTP)))
	return f, s, &image.Files{Glance: g, Dir: filepath.Join(t.TempDir(), "images")}
}

// writes returns a function that writes a snapshot, and counts its calls.
func writes(content string, n *int) func(string) error {
	return func(path string) error {
		*n++
		return os.WriteFile(path, []byte(content), 0o600)
	}
}

// TestUploadToken: an upload uses a token that does not expire soon. If the token is still refused, the whole upload is repeated.
func TestUploadToken(t *testing.T) {
	t.Parallel()
	content := strings.Repeat("content", 100_000)
	for name, tt := range map[string]struct {
		life    int64
		refused string
		want    string
	}{
		"refused":      {3600, "own-1", "own-1 own-2"},
		"near its end": {60, "", "own-2"},
		"lasts":        {3600, "", "own-1"},
		"always":       {3600, "own-", "own-1 own-2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, s, files := newUpload(t, image.GlanceConfig{}, func(w http.ResponseWriter, r *http.Request) bool {
				if tt.refused == "" || !strings.HasPrefix(r.Header.Get("X-Auth-Token"), tt.refused) {
					return false
				}
				_, _ = io.CopyN(io.Discard, r.Body, 1000)
				w.WriteHeader(http.StatusUnauthorized)
				return true
			})
			f.life.Store(tt.life)
			if _, err := files.Glance.Get(t.Context(), "", imageID); err != nil { // the login
				t.Fatal(err)
			}
			n := 0
			err := files.Put(t.Context(), imageID, writes(content, &n))
			_, got := s.now()
			if always := name == "always"; always != errors.Is(err, fault.Denied) || always == (got == content) || n != 1 {
				t.Errorf("put: %v, %d bytes of %d, %d snapshots", err, len(got), len(content), n)
			}
			if got := strings.Join(s.tokens, " "); got != tt.want {
				t.Errorf("uploads with %s, want %s", got, tt.want)
			}
		})
	}
}

// TestStalledTransfer: a transfer without progress fails with Unavailable, and keeps no lock.
func TestStalledTransfer(t *testing.T) {
	t.Parallel()
	ended := make(chan bool)
	end := sync.OnceFunc(func() { close(ended) })
	stall := func(http.ResponseWriter, *http.Request) bool {
		<-ended // not the context of the request, because it does not end while the body is not read
		return true
	}
	cfg := image.GlanceConfig{TransferTimeout: 100 * time.Millisecond, FinishTimeout: 100 * time.Millisecond}
	for _, size := range []int{10, 32 << 20} { // the reply stalls; the content stalls, because it is larger than all buffers
		_, _, files := newUpload(t, cfg, stall)
		t.Cleanup(end) // before the cleanup that stops the server
		n := 0
		write := writes(strings.Repeat("x", size), &n)
		for range 2 { // the second upload would wait if the first had kept a lock
			err := files.Put(t.Context(), imageID, write)
			if !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "no byte was transferred for 100ms") {
				t.Errorf("an upload of %d bytes: %v", size, err)
			}
		}
	}
	f, g := newFakeGlanceWith(t, cfg)
	files := &image.Files{Glance: g, Dir: t.TempDir()}
	f.answer.Store(new(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/file") {
			_, _ = fmt.Fprintf(w, `{"id": %q, "status": "active", "size": 7, "disk_format": "raw", "checksum": "x"}`, imageID)
			return
		}
		_, _ = io.WriteString(w, "con")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})))
	if _, err := files.Fetch(t.Context(), imageID); !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "after 3 of 7 bytes") {
		t.Errorf("a download: %v", err)
	}
}

// TestFinishTimeout: the image service may take longer for its reply after the last byte than between two bytes.
func TestFinishTimeout(t *testing.T) {
	t.Parallel()
	_, s, files := newUpload(t, image.GlanceConfig{TransferTimeout: 100 * time.Millisecond, FinishTimeout: time.Minute}, nil)
	put := func(w http.ResponseWriter, r *http.Request) bool {
		content, err := io.ReadAll(r.Body)
		if err != nil {
			return true
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-r.Context().Done():
			return true
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.status, s.content = image.Active, content
		w.WriteHeader(http.StatusNoContent)
		return true
	}
	s.set("queued", put)
	n := 0
	if err := files.Put(t.Context(), imageID, writes("disk", &n)); err != nil {
		t.Error(err)
	}
}

// TestPutAgain: after a failed upload, the next upload uses the same snapshot, until the snapshot is dropped. A failed upload does not remove the image.
func TestPutAgain(t *testing.T) {
	t.Parallel()
	_, s, files := newUpload(t, image.GlanceConfig{}, func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	n := 0
	for range 2 {
		if err := files.Put(t.Context(), imageID, writes("disk", &n)); !errors.Is(err, fault.Unavailable) || n != 1 {
			t.Errorf("%v after %d snapshots", err, n)
		}
		if status, _ := s.now(); status != "queued" {
			t.Errorf("the image is %s", status)
		}
	}
	for range 2 {
		if err := files.Drop(imageID); err != nil {
			t.Error(err)
		}
	}
	if left, _ := os.ReadDir(files.Dir); len(left) > 0 {
		t.Errorf("left %v", left)
	}
	s.set("queued", nil)
	for range 2 { // the second upload finds that the image has its content
		err := files.Put(t.Context(), imageID, writes("disk", &n))
		if _, got := s.now(); err != nil || got != "disk" || n != 2 {
			t.Errorf("%v, %q after %d snapshots", err, got, n)
		}
	}
}

// TestClean: incomplete files of a killed process are removed. Images, and snapshots that are not uploaded yet, stay.
func TestClean(t *testing.T) {
	t.Parallel()
	files := &image.Files{Dir: filepath.Join(t.TempDir(), "images")}
	if err := files.Clean(); err != nil {
		t.Errorf("no directory: %v", err)
	}
	if err := os.Mkdir(files.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a.qcow2", "snapshot-b.qcow2", ".new-snapshot-c.qcow2", "snapshot-d.qcow2.new", "e.raw.part"} {
		if err := os.WriteFile(filepath.Join(files.Dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	err := files.Clean()
	left, _ := filepath.Glob(filepath.Join(files.Dir, "*"))
	hidden, _ := filepath.Glob(filepath.Join(files.Dir, ".*"))
	if err != nil || len(left) != 2 || len(hidden) > 0 {
		t.Errorf("%v, left %v %v", err, left, hidden)
	}
}

// TestDiscard: an image is removed. With the parameter keepActive, an active image stays.
func TestDiscard(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		status string
		keep   bool
		want   string
	}{
		{"queued", false, "gone"},
		{"saving", false, "gone"},
		{"active", false, "gone"},
		{"gone", false, "gone"},
		{"queued", true, "gone"},
		{"saving", true, "gone"},
		{"active", true, "active"},
		{"gone", true, "gone"},
	} {
		_, s, files := newUpload(t, image.GlanceConfig{}, nil)
		s.set(tt.status, nil)
		err := files.Glance.Discard(t.Context(), imageID, tt.keep)
		if status, _ := s.now(); err != nil || status != tt.want {
			t.Errorf("%+v: %v, %s", tt, err, status)
		}
	}
	f, _, files := newUpload(t, image.GlanceConfig{}, nil)
	for code, want := range map[int]fault.Code{503: fault.Unavailable, 409: fault.Conflict, 403: fault.Denied} {
		f.answer.Store(new(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) })))
		if err := files.Glance.Discard(t.Context(), imageID, false); fault.CodeOf(err) != want {
			t.Errorf("%d: %v", code, err)
		}
	}
}
