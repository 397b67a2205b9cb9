package api

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/image"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/auth"
)

// imageRoutes registers the images as Nova shows them until 2.35 for clients without an image service, and their metadata until 2.38. Without a source of images there are none.
func (s *server) imageRoutes(all, withBody *api.Group) {
	images := api.NewGroup(all, api.Route{Pattern: "/images", Max: "2.35", Errors: []int{unavailable}})
	api.HandleRoute(images, api.Route{Pattern: "GET", Summary: "List images", Query: imageQuery}, s.listImages)
	api.HandleRoute(images, api.Route{Pattern: "GET /detail", Summary: "List images with details", Query: imageQuery}, s.listImageDetails)
	api.HandleRoute(images, api.Route{Pattern: "GET /{id}", Summary: "Show an image", Errors: []int{notFound}}, s.showImage)
	api.HandleRoute(images, api.Route{Pattern: "DELETE /{id}", Summary: "Delete an image", Errors: []int{notFound, conflict}}, s.deleteImage)
	s.imageMetadataRoutes(all, withBody)
}

// imageQuery is the query of a list of images. Nova passes the parameters property-NAME to the image service, and ignores other ones.
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

// shownStatus are Nova's names of the states of images. Others are UNKNOWN.
var shownStatus = map[string]struct {
	name     string
	progress int
}{
	image.Active: {"ACTIVE", 100}, "queued": {"SAVING", 25}, "saving": {"SAVING", 50}, "deleted": {"DELETED", 0}, "pending_delete": {"DELETED", 0}, "killed": {"ERROR", 0},
}

// diskProperty says who changes the partitions of a server.
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

// matchesImage reports whether an image has what a query asks for.
func matchesImage(q url.Values, is *image.Image) bool {
	number := func(key string) int {
		n, _ := strconv.Atoi(q.Get(key)) // the schema has checked the text
		return n
	}
	since, _ := time.Parse(time.RFC3339, q.Get("changes-since")) // likewise
	server := q.Get("server")
	server = server[strings.LastIndex(server, "/")+1:] // it may be a link
	for key, matches := range map[string]bool{
		"name": is.Name == q.Get("name"), "status": strings.EqualFold(cmp.Or(shownStatus[is.Status].name, "UNKNOWN"), q.Get("status")),
		"server": is.Properties[image.ServerProperty] == server, "type": is.Properties[image.TypeProperty] == q.Get("type"), "changes-since": !is.Updated.Before(since),
		"minRam": is.MinRAMMiB == number("minRam"), "minDisk": is.MinDiskGiB == number("minDisk"),
	} {
		if q.Has(key) && !matches {
			return false
		}
	}
	for key := range q {
		if name, ok := strings.CutPrefix(key, "property-"); ok && is.Properties[name] != q.Get(key) {
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
	if marker := q.Get("marker"); marker != "" {
		i := slices.IndexFunc(list, func(is image.Image) bool { return is.ID == marker })
		if i < 0 {
			return out, fault.New(fault.Invalid, "marker [%.255s] not found", marker)
		}
		list = list[i+1:]
	}
	limit := MaxLimit
	if n, err := strconv.Atoi(q.Get("limit")); err == nil { // the schema has checked the text
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

// nextLink returns the link to the page after an item.
func nextLink(r *http.Request, marker string) api.Link {
	q := r.URL.Query()
	q.Set("marker", marker)
	return api.Link{Rel: "next", Href: api.Base(r) + r.URL.Path + "?" + q.Encode()}
}

// tokenOf returns the token of a request, for other services.
func tokenOf(r *http.Request) string { return r.Header.Get(auth.Header) }

// images returns all images that a client may see.
func (s *server) images(ctx context.Context, r *http.Request) ([]image.Image, error) {
	if s.cfg.Images == nil {
		return nil, nil
	}
	return s.cfg.Images.List(ctx, tokenOf(r))
}

// keeper returns the image service, or nil without one.
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

// checkImage returns an image from which a server may boot, or nil if it is not known. It returns an error, with Nova's text, if an image does not exist for the client, is not active, or does not fit a flavor with this memory and root disk. missing is the text
// for an image that does not exist. Without a source of images any text is accepted, because only the driver knows. An empty reference is no image.
func (s *server) checkImage(ctx context.Context, r *http.Request, ref, missing string, ramMiB, diskGiB int) (*image.Image, error) {
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
	return is, nil
}

// newSnapshot makes an image, whose content the compute service of the server will upload, and returns its id. Without an image service the driver keeps the
// image, and the id is a new one. undo removes the image after an error, unless the action may have begun (Unknown).
func (s *server) newSnapshot(ctx context.Context, r *http.Request, srv *store.Server, a compute.Action, as store.Image) (id string, undo func(error) error, err error) {
	undo = func(err error) error { return err }
	k := s.keeper()
	if k == nil {
		return uuid.NewString(), undo, nil
	}
	if err := store.CheckAction(srv, a); err != nil {
		return "", nil, err
	}
	if err := s.checkBus(ctx); err != nil {
		return "", nil, err
	}
	token := tokenOf(r)
	made := image.Image{Name: as.Name, Format: "qcow2", MinDiskGiB: srv.Flavor().DiskGiB, Properties: map[string]string{}}
	switch base, err := k.Get(ctx, token, srv.ImageRef); {
	case err == nil:
		made.MinRAMMiB = base.MinRAMMiB
		maps.Copy(made.Properties, base.Properties)
		maps.DeleteFunc(made.Properties, func(key, _ string) bool { return strings.HasPrefix(key, "img_signature") }) // it is of other content
	case !errors.Is(err, fault.NotFound) && !errors.Is(err, fault.Denied): // otherwise it was deleted, or is not shared any more
		return "", nil, err
	}
	maps.Copy(made.Properties, as.Metadata)
	maps.Copy(made.Properties, map[string]string{
		image.TypeProperty: "snapshot", image.ServerProperty: srv.ID, "user_id": reqctx.From(ctx).UserID, "base_image_ref": srv.ImageRef,
		"owner_id": reqctx.From(ctx).ProjectID,
	})
	if a.Info().Rotates {
		made.Properties[image.TypeProperty], made.Properties[image.BackupTypeProperty] = image.BackupType, as.BackupType
	}
	id, err = k.Create(ctx, token, made)
	if err != nil {
		return "", nil, err
	}
	undo = func(err error) error {
		if err == nil || fault.CodeOf(err) == fault.Unknown { // otherwise the action may run, and fill the image
			return err
		}
		if e := s.cfg.Store.DiscardImage(context.WithoutCancel(ctx), id, store.DiscardData{Server: srv.ID}); e != nil {
			s.cfg.Logger.ErrorContext(ctx, "image not removed, no server needs it", "image", id, "error", e)
		}
		return err
	}
	return id, undo, nil
}
