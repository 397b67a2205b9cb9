package api

import (
	"context"
	"maps"
	"net/http"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
)

// imageMetadataRoutes registers the routes for the metadata of images. The metadata of an image are its properties in the image service.
func (s *server) imageMetadataRoutes(all, withBody *api.Group) {
	const path = "/images/{id}/metadata"
	reads := api.NewGroup(all, api.Route{Pattern: path, Max: "2.38", Errors: []int{notFound, unavailable}})
	writes := api.NewGroup(withBody, api.Route{Pattern: path, Max: "2.38", Errors: []int{notFound, conflict, unavailable}})
	api.HandleRoute(reads, api.Route{Pattern: "GET", Summary: "List the metadata of an image"}, s.showImageMetadata)
	api.HandleRoute(reads, api.Route{Pattern: "GET /{key}", Summary: "Show a metadata item of an image"}, s.showImageItem)
	api.HandleRoute(writes, api.Route{Pattern: "POST", Summary: "Add metadata items to an image"}, s.addImageMetadata)
	api.HandleRoute(writes, api.Route{Pattern: "PUT", Summary: "Replace the metadata of an image"}, s.setImageMetadata)
	api.HandleRoute(writes, api.Route{Pattern: "PUT /{key}", Summary: "Set a metadata item of an image"}, s.setImageItem)
	api.HandleRoute(reads, api.Route{Pattern: "DELETE /{key}", Summary: "Delete a metadata item of an image", Errors: []int{conflict}}, s.deleteImageItem)
}

func (s *server) showImageMetadata(ctx context.Context, r *api.Request[api.None]) (out metadataBody, err error) {
	is, err := s.image(ctx, r.Request)
	if err != nil {
		return out, err
	}
	return metadataBody{viewImage(r.Request, is).Metadata}, nil
}

func (s *server) showImageItem(ctx context.Context, r *api.Request[api.None]) (out metadataItem, err error) {
	is, err := s.image(ctx, r.Request)
	if err != nil {
		return out, err
	}
	key := r.PathValue("key")
	value, ok := is.Properties[key]
	if !ok {
		return out, noItem()
	}
	return metadataItem{oneItem{key: value}}, nil
}

// changeImage changes the metadata of an image. Errors: Denied if the client may not change the image, if the image would have too many items, or if nova-mini
// has no image service.
func (s *server) changeImage(ctx context.Context, r *http.Request, change func(map[string]string) (map[string]string, error)) (metadataBody, error) {
	checked := func(now map[string]string) (map[string]string, error) {
		to, err := change(now)
		if err == nil {
			err = s.tooManyItems(len(to))
		}
		return to, err
	}
	is, err := s.image(ctx, r)
	if err != nil {
		return metadataBody{}, err
	}
	k := s.keeper()
	if k == nil { // the images of a directory cannot be changed
		if _, err := checked(maps.Clone(is.Properties)); err != nil {
			return metadataBody{}, err
		}
		return metadataBody{}, fault.New(fault.Denied, "Not authorized for image %s.", is.ID)
	}
	if is, err = k.SetProperties(ctx, tokenOf(r), is.ID, checked); err != nil {
		return metadataBody{}, err
	}
	return metadataBody{viewImage(r, is).Metadata}, nil
}

func (s *server) addImageMetadata(ctx context.Context, r *api.Request[metadataBody]) (metadataBody, error) {
	return s.changeImage(ctx, r.Request, withItems(r.Body.Metadata))
}

func (s *server) setImageMetadata(ctx context.Context, r *api.Request[metadataBody]) (metadataBody, error) {
	return s.changeImage(ctx, r.Request, func(map[string]string) (map[string]string, error) { return r.Body.Metadata, nil })
}

func (s *server) setImageItem(ctx context.Context, r *api.Request[metadataItem]) (metadataItem, error) {
	if _, ok := r.Body.Meta[r.PathValue("key")]; !ok {
		return metadataItem{}, fault.New(fault.Invalid, "Request body and URI mismatch")
	}
	_, err := s.changeImage(ctx, r.Request, withItems(r.Body.Meta))
	return r.Body, err
}

func (s *server) deleteImageItem(ctx context.Context, r *api.Request[api.None]) (api.None, error) {
	key := r.PathValue("key")
	_, err := s.changeImage(ctx, r.Request, func(m map[string]string) (map[string]string, error) {
		if _, ok := m[key]; !ok {
			return nil, noItem()
		}
		delete(m, key)
		return m, nil
	})
	return api.None{}, err
}
