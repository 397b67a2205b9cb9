package image_test

import (
	"bytes"
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/image"
	"github.com/armature-go/armature/examples/nova-mini/session"
	"github.com/armature-go/armature/fault"
)

// fakeGlance is Keystone and Glance with one image. If answer is set, this function answers the requests to Glance.
type fakeGlance struct {
	*httptest.Server

	asked  atomic.Int64 // the number of requests to Glance
	logins atomic.Int64
	answer atomic.Pointer[http.HandlerFunc]
	life   atomic.Int64 // the lifetime of tokens in seconds
	log    bytes.Buffer
}

const imageID = "11111111-2222-4333-8444-555555555555"

func newFakeGlance(t *testing.T) (*fakeGlance, *image.Glance) {
	t.Helper()
	return newFakeGlanceWith(t, image.GlanceConfig{})
}

// newFakeGlanceWith is like newFakeGlance, with a configuration; it sets Config and Logger itself. The n-th login returns the token own-n.
func newFakeGlanceWith(t *testing.T, cfg image.GlanceConfig) (*fakeGlance, *image.Glance) {
	t.Helper()
	f := &fakeGlance{}
	f.life.Store(3600)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v3/auth/tokens", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Subject-Token", fmt.Sprintf("own-%d", f.logins.Add(1)))
		w.WriteHeader(http.StatusCreated)
		ends := time.Now().Add(time.Duration(f.life.Load()) * time.Second).UTC().Format("2006-01-02T15:04:05.000000Z")
		_, _ = fmt.Fprintf(w, `{"token": {"expires_at": "`+ends+`", "catalog": [{"type": "image", "endpoints": [{"interface": "public", "region": "r", "region_id": "r", "url": %q}]}]}}`, f.URL)
	})
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, r *http.Request) {
		f.asked.Add(1)
		if h := f.answer.Load(); h != nil {
			(*h)(w, r)
			return
		}
		_, _ = fmt.Fprintf(w, `{"id": %q, "status": "active", "size": 7, "disk_format": "raw", "os_hash_algo": "sha512", "os_hash_value": "%x", "os_distro": "d", "self": "/x"}`, imageID, sha512.Sum512([]byte("content")))
	})
	f.Server = httptest.NewServer(mux)
	t.Cleanup(f.Close)
	cfg.Config = session.Config{AuthURL: f.URL + "/v3", Username: "u", Password: "p", UserTokens: true}
	cfg.Logger = slog.New(slog.NewTextHandler(&f.log, nil))
	g, err := image.NewGlance(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return f, g
}

// TestGlanceAnswers: an answer that is not an image, or that comes from another server, is an error. The log has the reason and no token.
func TestGlanceAnswers(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		want   fault.Code
	}{
		"missing":     {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }, fault.NotFound},
		"not allowed": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }, fault.Denied},
		"wrong token": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) }, fault.Denied},
		"broken":      {func(w http.ResponseWriter, r *http.Request) { http.Error(w, r.Header.Get("X-Auth-Token"), 500) }, fault.Unavailable},
		"redirect":    {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/v2/other", http.StatusFound) }, fault.Unavailable},
		"other JSON":  {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"message": "hello"}`) }, fault.Unavailable},
		"no JSON":     {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `<html>`) }, fault.Unavailable},
		"another image": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"id": "other", "status": "active"}`)
		}, fault.Unavailable},
		"very large": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"id": "`+imageID+`", "status": "active", "name": "`+strings.Repeat("x", 20<<20)+`"}`)
		}, fault.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, g := newFakeGlance(t)
			f.answer.Store(&tt.answer)
			is, err := g.Get(t.Context(), "secret", imageID)
			if is != nil || fault.CodeOf(err) != tt.want {
				t.Errorf("%v, %v; want %v", is, err, tt.want)
			}
			if text := fmt.Sprint(err) + f.log.String(); strings.Contains(text, "secret") || tt.want == fault.Unavailable && f.log.Len() == 0 {
				t.Errorf("the error and the log: %s", text)
			}
		})
	}
	for status, want := range map[int]fault.Code{401: fault.Unauthenticated, 403: fault.Denied, 500: fault.Unavailable} {
		f, g := newFakeGlance(t)
		f.answer.Store(new(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })))
		if _, err := g.List(t.Context(), "secret"); fault.CodeOf(err) != want {
			t.Errorf("a list that is answered with %d: %v", status, err)
		}
	}
	f, g := newFakeGlance(t)
	var wg sync.WaitGroup
	for range 20 { // all requests share one login
		wg.Go(func() {
			if _, err := g.Get(t.Context(), "", imageID); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := f.logins.Load(); n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
	f, g = newFakeGlance(t)
	f.Close()
	if _, err := g.Get(t.Context(), "secret", imageID); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("a service that is away: %v", err)
	}
}

// TestGlanceCache: an image is read once for each token, and a second time after a change.
func TestGlanceCache(t *testing.T) {
	t.Parallel()
	f, g := newFakeGlance(t)
	get := func(token string, asked int64) {
		t.Helper()
		is, err := g.Get(t.Context(), token, imageID)
		if err != nil || is.Properties["os_distro"] != "d" || len(is.Properties) != 1 || f.asked.Load() != asked {
			t.Errorf("%+v, %v after %d requests, want %d", is, err, f.asked.Load(), asked)
		}
	}
	get("a", 1)
	get("a", 1)
	get("b", 2)
	for _, id := range []string{"", ".", "..", "a/b", "a?b", "%2e%2e"} {
		if _, err := g.Get(t.Context(), "a", id); !errors.Is(err, fault.NotFound) || f.asked.Load() != 2 {
			t.Errorf("the image %q: %v after %d requests", id, err, f.asked.Load())
		}
	}
	if err := g.Delete(t.Context(), "a", imageID); fault.CodeOf(err) != fault.Unavailable { // the answer is not 204
		t.Errorf("delete: %v", err)
	}
	get("a", 4)
}

// TestFilesWithoutChecksum: an image is not downloaded if it has no checksum with a known algorithm, or a format from which servers do not boot.
func TestFilesWithoutChecksum(t *testing.T) {
	t.Parallel()
	for says, attributes := range map[string]string{
		"has no checksum":         `"disk_format": "raw"`,
		`unknown algorithm "rot"`: `"disk_format": "raw", "os_hash_algo": "rot", "os_hash_value": "1"`,
		`has the format "vmdk"`:   `"disk_format": "vmdk", "checksum": "1"`,
	} {
		f, g := newFakeGlance(t)
		answer := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = fmt.Fprintf(w, `{"id": %q, "status": "active", "size": 7, %s}`, imageID, attributes)
		})
		f.answer.Store(&answer)
		files := &image.Files{Glance: g, Dir: filepath.Join(t.TempDir(), "images")}
		if _, err := files.Fetch(context.Background(), imageID); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %s", err, says)
		}
		if left, err := os.ReadDir(files.Dir); err == nil && len(left) > 0 {
			t.Errorf("left %v", left)
		}
	}
}

// TestNewGlance: the error of a wrong option names the option.
func TestNewGlance(t *testing.T) {
	t.Parallel()
	good := image.GlanceConfig{Config: session.Config{AuthURL: "http://k/v3", Username: "u", Password: "p"}}
	for option, change := range map[string]func(*image.GlanceConfig){
		"auth_url":          func(c *image.GlanceConfig) { c.AuthURL = "k:5000" },
		"username":          func(c *image.GlanceConfig) { c.Username = "" },
		"password":          func(c *image.GlanceConfig) { c.Password = "" },
		"endpoint_override": func(c *image.GlanceConfig) { c.Endpoint = "glance" },
		"valid_interfaces":  func(c *image.GlanceConfig) { c.Interfaces = []string{"publik"} },
	} {
		cfg := good
		change(&cfg)
		_, err := image.NewGlance(cfg)
		if f, ok := errors.AsType[*fault.Error](err); !ok || f.Meta["option"] != option || !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", option, err)
		}
	}
}

// TestRotate: the newest active backups stay, and also inactive backups that are newer than the oldest of these. Images of other types, servers and owners neither count nor are removed. A backup
// that cannot be removed stays, and the other backups are removed.
func TestRotate(t *testing.T) {
	t.Parallel()
	backup := func(id, status, imageType, backupType, server, owner string) string {
		return fmt.Sprintf(`{"id": %q, "status": %q, "image_type": %q, "backup_type": %q, "instance_uuid": %q, "owner": %q}`, id, status, imageType, backupType, server, owner)
	}
	list := []string{ // x1 to x5 must not count: they are in the list as if the service ignored a filter, or the case of letters
		backup("x1", "active", "snapshot", "daily & more", "s", "p"), backup("x2", "active", "backup", "Daily & More", "s", "p"), backup("x3", "active", "backup", "daily & more", "S", "p"),
		backup("x4", "active", "backup", "daily & more", "s", "P"), `{"id": "x5", "status": "active", "owner": null}`,
	}
	for _, one := range []string{"q1 queued", "a1 active", "a2 active", "broken killed", "a3 active"} {
		id, status, _ := strings.Cut(one, " ")
		list = append(list, backup(id, status, "backup", "daily & more", "s", "p"))
	}
	for keep, want := range map[int]string{0: "q1 a1 a2 broken a3", 1: "a2 broken a3", 2: "broken a3", 9: ""} {
		f, g := newFakeGlance(t)
		var removed []string
		var query string
		answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				query = r.URL.RawQuery
				w.Header().Set("Content-Type", "application/json")
				_, _ = fmt.Fprintf(w, `{"images": [%s]}`, strings.Join(list, ", "))
				return
			}
			id := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
			removed = append(removed, id)
			w.WriteHeader(map[string]int{"broken": 409, "a3": 404}[id] | map[bool]int{true: 204}[id[0] != 'b' && id != "a3"])
		})
		f.answer.Store(&answer)
		files := &image.Files{Glance: g, Dir: t.TempDir()}
		if err := files.Rotate(t.Context(), "s", compute.Rotation{Type: "daily & more", Keep: keep, ProjectID: "p"}); err != nil {
			t.Error(err)
		}
		if got := strings.Join(removed, " "); got != want {
			t.Errorf("keep %d: removed %q, want %q", keep, got, want)
		}
		if want := "backup_type=daily+%26+more&image_type=backup&instance_uuid=s&limit=1000&owner=p&sort=created_at%3Adesc"; query != want {
			t.Errorf("asked for %s, want %s", query, want)
		}
	}
	f, g := newFakeGlance(t)
	f.Close()
	if err := (&image.Files{Glance: g, Dir: t.TempDir()}).Rotate(t.Context(), "s", compute.Rotation{}); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("a service that is away: %v", err)
	}
}
