package image_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/image"
)

// TestSetProperties: a change is made from the present properties, and only the changed properties are sent, so that another client's change is kept.
func TestSetProperties(t *testing.T) {
	t.Parallel()
	f, g := newFakeGlance(t)
	if _, err := g.Get(t.Context(), "a", imageID); err != nil { // the cache has the image as it was before the change of another client
		t.Fatal(err)
	}
	now := `"os_distro": "d", "other": "1"`
	var patches []string
	f.answer.Store(new(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPatch {
			raw, _ := io.ReadAll(r.Body)
			if patches = append(patches, string(raw)); len(patches) == 1 { // meanwhile another client has removed the property
				now = `"os_distro": "d", "third": "3"`
				w.WriteHeader(http.StatusConflict)
				return
			}
			now += `, "mine": "2"`
		}
		_, _ = fmt.Fprintf(w, `{"id": %q, "status": "active", %s}`, imageID, now)
	})))
	is, err := g.SetProperties(t.Context(), "a", imageID, func(m map[string]string) (map[string]string, error) {
		delete(m, "other")
		m["mine"] = "2"
		return m, nil
	})
	if err != nil || fmt.Sprint(is.Properties) != "map[mine:2 os_distro:d third:3]" {
		t.Errorf("%+v, %v", is, err)
	}
	if len(patches) != 2 || !strings.Contains(patches[0], `"/other"`) || strings.Contains(patches[1], "other") || strings.Contains(patches[1], "third") || strings.Contains(patches[1], "os_distro") {
		t.Errorf("patches: %v", patches)
	}
	if is, err := g.Get(t.Context(), "a", imageID); err != nil || is.Properties["mine"] != "2" {
		t.Errorf("after the change the cache has %+v, %v", is, err)
	}
	no := errors.New("no")
	if _, err := g.SetProperties(t.Context(), "a", imageID, func(map[string]string) (map[string]string, error) { return nil, no }); !errors.Is(err, no) || len(patches) != 2 {
		t.Errorf("a change that fails: %v, %v", err, patches)
	}
}

// TestCacheRace: an image that was read before a change is not stored in the cache after the change.
func TestCacheRace(t *testing.T) {
	t.Parallel()
	f, g := newFakeGlance(t)
	began, changed := make(chan bool), make(chan bool)
	reads := 0
	f.answer.Store(new(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodDelete {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		if reads++; reads == 1 {
			began <- true
			<-changed
		}
		_, _ = fmt.Fprintf(w, `{"id": %q, "status": "active", "name": "%d"}`, imageID, reads)
	})))
	done := make(chan error)
	go func() {
		_, err := g.Get(t.Context(), "a", imageID)
		done <- err
	}()
	<-began
	if err := g.Delete(t.Context(), "a", imageID); err != nil {
		t.Error(err)
	}
	changed <- true
	if err := <-done; err != nil {
		t.Error(err)
	}
	if is, err := g.Get(t.Context(), "a", imageID); err != nil || is.Name != "2" {
		t.Errorf("%+v, %v", is, err)
	}
}

// TestOddImages: properties that are not texts are not shown. An image that cannot be read is left out of lists, and the log names the image.
func TestOddImages(t *testing.T) {
	t.Parallel()
	f, g := newFakeGlance(t)
	odd := `{"id": "` + imageID + `", "status": "active", "size": null, "min_ram": 1, "created_at": "2026-01-02T03:04:05Z", "metadata": "m", "Name": "n", "object": {"a": 1}, "none": null,
		"number": 1, "list": ["x"], "properties": "p", "owner": "o", "tags": ["t"], "os_glance_x": "y", "name": null}`
	f.answer.Store(new(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.Method == http.MethodPost:
			w.WriteHeader(http.StatusCreated)
			_, _ = io.WriteString(w, odd)
		case r.URL.Query().Get("marker") != "":
			_, _ = io.WriteString(w, `{"images": [{"id": "last", "status": "queued"}]}`)
		case strings.HasSuffix(r.URL.Path, "/images"):
			_, _ = io.WriteString(w, `{"images": [`+odd+`, {"id": "broken", "status": "active", "size": "7"}, {"id": 1, "status": "active"}, "x"], "next": "/v2/images?limit=1000&marker=x"}`)
		default:
			_, _ = io.WriteString(w, odd)
		}
	})))
	check := func(is *image.Image, err error) {
		t.Helper()
		if err != nil || fmt.Sprint(is.Properties) != "map[Name:n metadata:m properties:p]" || is.Name != "" || is.MinRAMMiB != 1 || is.Created.Year() != 2026 {
			t.Errorf("%+v, %v", is, err)
		}
	}
	check(g.Get(t.Context(), "a", imageID))
	list, err := g.List(t.Context(), "a")
	if err != nil || len(list) != 2 || list[1].ID != "last" {
		t.Fatalf("%+v, %v", list, err)
	}
	check(&list[0], nil)
	if log := f.log.String(); strings.Count(log, "level=WARN") != 3 || !strings.Contains(log, "image=broken") || !strings.Contains(log, "attribute size") {
		t.Errorf("log: %s", log)
	}
	if id, err := g.Create(t.Context(), "a", image.Image{Name: "s", Format: "qcow2", Properties: map[string]string{"metadata": "m"}}); err != nil || id != imageID {
		t.Errorf("create: %q, %v", id, err)
	}
}
