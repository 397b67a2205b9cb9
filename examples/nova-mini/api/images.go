package api

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/image"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/auth"
)

// imageRoutes registers Nova's routes for clients that do not use the image service: images until 2.35, and metadata of images until 2.38. Without a source of images the lists are empty.
func (s *server) imageRoutes(all, withBody *api.Group) {
	images := api.NewGroup(all, api.Route{Pattern: "/images", Max: "2.35", Errors: []int{unavailable}})
	api.HandleRoute(images, api.Route{Pattern: "GET", Summary: "List images", Query: imageQuery}, s.listImages)
	api.HandleRoute(images, api.Route{Pattern: "GET /detail", Summary: "List images with details", Query: imageQuery}, s.listImageDetails)
	api.HandleRoute(images, api.Route{Pattern: "GET /{id}", Summary: "Show an image", Errors: []int{notFound}}, s.showImage)
	api.HandleRoute(images, api.Route{Pattern: "DELETE /{id}", Summary: "Delete an image", Errors: []int{notFound, conflict}}, s.deleteImage)
	s.imageMetadataRoutes(all, withBody)
}

// imageQuery is the query of a list of images. As in Nova, a list may also be filtered by parameters property-NAME, and other parameters are ignored.
var imageQuery = []api.Schema{{JSON: `{"type": "object", "properties": {"name": {"type": "array", "items": {"type": "string"}},
	"status": {"type": "array", "items": {"type": "string"}}, "server": {"type": "array", "items": {"type": "string"}}, "type": {"type": "array", "items": {"type": "string"}},
	"changes-since": {"type": "array", "items": {"type": "string", "format": "date-time"}}, "minRam": {"type": "array", "items": {"type": "string", "pattern": "^[0-9]+$", "maxLength": 9}},
	"minDisk": {"type": "array", "items": {"type": "string", "pattern": "^[0-9]+$", "maxLength": 9}},
	"marker": {"type": "array", "items": {"type": "string"}}, "limit": {"type": "array", "items": {"type": "string", "pattern": "^[0-9]+$", "maxLength": 9}}}}`}}

type imageList[T any] struct {
	Images []T        `json:"images"`
	Links  []api.Link `json:"images_links,omitempty"`
}

type oneImage struct {
	Image imageDetail `json:"image"`
}

type imageBrief struct {
	ID    string     `json:"id"`
	Name  string     `json:"name"`
	Links []api.Link `json:"links"`
}

type imageDetail struct {
	imageBrief

	MinRAM     int       `json:"minRam" min:"0"`
	MinDisk    int       `json:"minDisk" min:"0"`
	Metadata   metadata  `json:"metadata"`
	Created    string    `json:"created" format:"date-time"`
	Updated    string    `json:"updated" format:"date-time"`
	Status     string    `json:"status" enum:"ACTIVE,SAVING,DELETED,ERROR,UNKNOWN"`
	Progress   int       `json:"progress" min:"0"`
	Size       int64     `json:"OS-EXT-IMG-SIZE:size" min:"0"`
	DiskConfig string    `json:"OS-DCF:diskConfig,omitempty" enum:"AUTO,MANUAL"`
	Server     *bookmark `json:"server,omitempty"`
}

func briefImage(r *http.Request, is *image.Image) imageBrief {
	links := linksTo(r, "images", is.ID)
	return imageBrief{ID: is.ID, Name: is.Name, Links: append(links, api.Link{Rel: "alternate", Type: "application/vnd.openstack.image", Href: links[1].Href})}
}

// shownStatus has Nova's status and progress of images, by the status in the image service. Images in any other status are UNKNOWN.
var shownStatus = map[string]struct {
	name     string
	progress int
}{
	image.Active: {"ACTIVE", 100}, "queued": {"SAVING", 25}, "saving": {"SAVING", 50}, "deleted": {"DELETED", 0}, "pending_delete": {"DELETED", 0}, "killed": {"ERROR", 0},
}

// diskProperty is the property of an image that the API shows as OS-DCF:diskConfig.
const diskProperty = "auto_disk_config"

func viewImage(r *http.Request, is *image.Image) imageDetail {
	status := shownStatus[is.Status]
	out := imageDetail{
		imageBrief: briefImage(r, is), MinRAM: is.MinRAMMiB, MinDisk: is.MinDiskGiB, Metadata: is.Properties,
		Created: formatSeconds(is.Created), Updated: formatSeconds(is.Updated), Status: cmp.Or(status.name, "UNKNOWN"), Progress: status.progress, Size: is.Size,
	}
	if out.Metadata == nil {
		out.Metadata = metadata{}
	}
	if auto, ok := is.Properties[diskProperty]; ok {
		out.DiskConfig = diskConfig(isTrue(auto))
	}
	if id := is.Properties[image.ServerProperty]; id != "" {
		l := linksTo(r, "servers", id)
		out.Server = &bookmark{ID: id, Links: l}
	}
	return out
}

// matchesImage reports whether an image matches all filters of a query.
func matchesImage(q url.Values, is *image.Image) bool {
	number := func(key string) int {
		n, _ := strconv.Atoi(lastValue(q, key)) // the schema has checked the text
		return n
	}
	since, _ := time.Parse(time.RFC3339, lastValue(q, "changes-since")) // likewise
	server := lastValue(q, "server")
	server = server[strings.LastIndex(server, "/")+1:] // it may be a link
	for key, matches := range map[string]bool{
		"name": is.Name == lastValue(q, "name"), "status": strings.EqualFold(cmp.Or(shownStatus[is.Status].name, "UNKNOWN"), lastValue(q, "status")),
		"server": is.Properties[image.ServerProperty] == server, "type": is.Properties[image.TypeProperty] == lastValue(q, "type"), "changes-since": !is.Updated.Before(since),
		"minRam": is.MinRAMMiB == number("minRam"), "minDisk": is.MinDiskGiB == number("minDisk"),
	} {
		if q.Has(key) && !matches {
			return false
		}
	}
	for key := range q {
		if name, ok := strings.CutPrefix(key, "property-"); ok && is.Properties[name] != lastValue(q, key) {
			return false
		}
	}
	return true
}

func imagesAs[T any](ctx context.Context, s *server, r *api.Request[api.None], view func(*http.Request, *image.Image) T) (imageList[T], error) {
	out := imageList[T]{Images: []T{}}
	list, err := s.images(ctx, r.Request)
	if err != nil {
		return out, err
	}
	q := r.URL.Query()
	list = slices.DeleteFunc(slices.Clone(list), func(is image.Image) bool { return !matchesImage(q, &is) })
	if marker := lastValue(q, "marker"); marker != "" {
		i := slices.IndexFunc(list, func(is image.Image) bool { return is.ID == marker })
		if i < 0 {
			return out, fault.New(fault.Invalid, "marker [%.255s] not found", marker)
		}
		list = list[i+1:]
	}
	limit := MaxLimit
	if n, err := strconv.Atoi(lastValue(q, "limit")); err == nil { // the schema has checked the text
		limit = min(n, MaxLimit)
	}
	more := len(list) > limit
	for i := range list[:min(limit, len(list))] {
		out.Images = append(out.Images, view(r.Request, &list[i]))
	}
	if more && limit > 0 {
		out.Links = []api.Link{nextLink(r.Request, list[limit-1].ID)}
	}
	return out, nil
}

// nextLink returns the link to the page that begins after the marker.
func nextLink(r *http.Request, marker string) api.Link {
	q := r.URL.Query()
	q.Set("marker", marker)
	return api.Link{Rel: "next", Href: api.Base(r) + r.URL.Path + "?" + q.Encode()}
}

// tokenOf returns the client's token, with which nova-mini calls other services for the client.
func tokenOf(r *http.Request) string { return r.Header.Get(auth.Header) }

// images returns all images that a client may see.
func (s *server) images(ctx context.Context, r *http.Request) ([]image.Image, error) {
	if s.cfg.Images == nil {
		return nil, nil
	}
	return s.cfg.Images.List(ctx, tokenOf(r))
}

// keeper returns the image service, or nil if none is configured.
func (s *server) keeper() image.Keeper {
	k, _ := s.cfg.Images.(image.Keeper)
	return k
}

func (s *server) listImages(ctx context.Context, r *api.Request[api.None]) (imageList[imageBrief], error) {
	return imagesAs(ctx, s, r, briefImage)
}

func (s *server) listImageDetails(ctx context.Context, r *api.Request[api.None]) (imageList[imageDetail], error) {
	return imagesAs(ctx, s, r, viewImage)
}

// image returns an image that a client may see.
func (s *server) image(ctx context.Context, r *http.Request) (*image.Image, error) {
	if s.cfg.Images == nil {
		return nil, fault.New(fault.NotFound, "Image not found.")
	}
	is, err := s.cfg.Images.Get(ctx, tokenOf(r), r.PathValue("id"))
	if errors.Is(err, fault.NotFound) {
		err = fault.New(fault.NotFound, "Image not found.")
	}
	return is, err
}

func (s *server) showImage(ctx context.Context, r *api.Request[api.None]) (out oneImage, err error) {
	is, err := s.image(ctx, r.Request)
	if err != nil {
		return out, err
	}
	return oneImage{viewImage(r.Request, is)}, nil
}

func (s *server) deleteImage(ctx context.Context, r *api.Request[api.None]) (api.None, error) {
	is, err := s.image(ctx, r.Request)
	if err != nil {
		return api.None{}, err
	}
	k := s.keeper()
	if k == nil {
		return api.None{}, fault.New(fault.Denied, "You are not allowed to delete the image.")
	}
	err = k.Delete(ctx, tokenOf(r.Request), is.ID)
	if errors.Is(err, fault.Denied) {
		err = fault.New(fault.Denied, "You are not allowed to delete the image.")
	}
	return api.None{}, err
}

// checkImage checks the image from which a server is to boot, and returns the image. The result is nil for an empty reference. Without a
// source of images, the result is nil for any text, because only the driver knows which images exist. Errors, with Nova's texts: Invalid if
// the image does not exist for the client (the parameter missing is the text), is not active, has an invalid property, does not fit a
// flavor with this memory and root disk, or does not allow the value of OS-DCF:diskConfig in the parameter disk; 501 if nova-mini cannot
// honor a property of the image.
func (s *server) checkImage(ctx context.Context, r *http.Request, ref, missing, disk string, ramMiB, diskGiB int) (*image.Image, error) {
	if ref == "" || s.cfg.Images == nil {
		return nil, nil
	}
	is, err := s.cfg.Images.Get(ctx, tokenOf(r), ref)
	const gib = 1 << 30
	switch {
	case errors.Is(err, fault.NotFound):
		return nil, fault.New(fault.Invalid, "%s", missing)
	case err != nil:
		return nil, err
	case is.Status != image.Active:
		return nil, fault.New(fault.Invalid, "Image %s is not active.", ref)
	case is.MinRAMMiB > ramMiB:
		return nil, fault.New(fault.Invalid, "Flavor's memory is too small for requested image.")
	case diskGiB > 0 && is.MinDiskGiB > diskGiB: // 0: the disk has the size of the image
		return nil, fault.New(fault.Invalid, "Flavor's disk is smaller than the minimum size specified in image metadata. Flavor disk is %d bytes, minimum size is %d bytes.",
			diskGiB*gib, is.MinDiskGiB*gib)
	case diskGiB > 0 && is.Size > int64(diskGiB)*gib:
		return nil, fault.New(fault.Invalid, "Flavor's disk is too small for requested image. Flavor disk is %d bytes, image is %d bytes.", diskGiB*gib, is.Size)
	}
	if err := checkDiskConfig(disk, ref, is.Properties); err != nil {
		return nil, err
	}
	_, err = image.Needs(is.Properties)
	return is, notImplemented(err)
}

// bootFrom sets what a server keeps of the image from which it boots. A nil image means that the image is not known.
func bootFrom(srv *store.Server, ref string, is *image.Image, disk string) {
	srv.ImageRef, srv.ImageProperties = ref, db.JSON[map[string]string]{}
	switch {
	case disk != "":
		srv.AutoDisk = disk == "AUTO"
	case is != nil:
		srv.AutoDisk = isTrue(is.Properties[diskProperty])
	}
	if is == nil {
		return
	}
	srv.ImageProperties = db.JSONOf(knownProperties(is.Properties))
	srv.ConfigDrive = srv.ConfigDrive || is.Properties["img_config_drive"] == "mandatory"
}

// checkDiskConfig returns Invalid, with Nova's text, if the client wants that the partitions of a server are changed automatically, and the
// image does not allow this. The parameters ref and properties are those of the image.
func checkDiskConfig(disk, ref string, properties map[string]string) error {
	if disk == "AUTO" && strings.EqualFold(strings.TrimSpace(properties[diskProperty]), "disabled") {
		return fault.New(fault.Invalid, "Requested image %s has automatic disk resize disabled.", ref)
	}
	return nil
}
