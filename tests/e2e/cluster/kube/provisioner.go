package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
)

const (
	provisionerName = "dstj.io/hostpath"
	provisionedBy   = "pv.kubernetes.io/provisioned-by"
	forProvisioner  = "volume.kubernetes.io/storage-provisioner"
)

// provisioner makes a directory and a hostPath volume for each claim that names it, and removes
// both when the claim is gone.  Every node sees the same directory, so any access mode holds.
type provisioner struct {
	client  kubernetes.Interface
	dir     string
	claims  cache.SharedIndexInformer
	volumes cache.SharedIndexInformer
	queue   workqueue.TypedRateLimitingInterface[item]
}

type item struct{ kind, key string }

func newProvisionerCommand() *cobra.Command {
	var kubeconfig, dir string
	command := &cobra.Command{
		Use: "provisioner", SilenceUsage: true,
		RunE: func(*cobra.Command, []string) error { return runProvisioner(kubeconfig, dir) },
	}
	command.Flags().StringVar(&kubeconfig, "kubeconfig", "", "how to reach the API server")
	command.Flags().StringVar(&dir, "dir", "", "parent of the volumes' directories")
	return command
}

func runProvisioner(kubeconfig, dir string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	p := newProvisioner(client, dir)
	stop := make(chan struct{})
	go p.claims.Run(stop)
	go p.volumes.Run(stop)
	if !cache.WaitForCacheSync(stop, p.claims.HasSynced, p.volumes.HasSynced) {
		return errors.New("no connection to the API server")
	}
	for {
		p.workOnce(context.Background())
	}
}

func newProvisioner(client kubernetes.Interface, dir string) *provisioner {
	core := informers.NewSharedInformerFactory(client, 0).Core().V1()
	p := &provisioner{
		client: client, dir: dir,
		claims:  core.PersistentVolumeClaims().Informer(),
		volumes: core.PersistentVolumes().Informer(),
		queue:   workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[item]()),
	}
	p.claims.AddEventHandler(p.enqueue("claim"))
	p.volumes.AddEventHandler(p.enqueue("volume"))
	return p
}

func (p *provisioner) enqueue(kind string) cache.ResourceEventHandler {
	add := func(object any) {
		if key, err := cache.MetaNamespaceKeyFunc(object); err == nil {
			p.queue.Add(item{kind, key})
		}
	}
	return cache.ResourceEventHandlerFuncs{AddFunc: add, UpdateFunc: func(_, object any) { add(object) }}
}

func (p *provisioner) workOnce(ctx context.Context) {
	next, _ := p.queue.Get()
	defer p.queue.Done(next)
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := p.handle(ctx, next); err != nil {
		klog.ErrorS(err, "try again", "kind", next.kind, "key", next.key)
		p.queue.AddRateLimited(next)
		return
	}
	p.queue.Forget(next)
}

func (p *provisioner) handle(ctx context.Context, next item) error {
	store := map[string]cache.Store{"claim": p.claims.GetStore(), "volume": p.volumes.GetStore()}[next.kind]
	object, exists, err := store.GetByKey(next.key)
	if err != nil || !exists {
		return err
	}
	switch object := object.(type) {
	case *core.PersistentVolumeClaim:
		return p.provision(ctx, object)
	case *core.PersistentVolume:
		return p.reclaim(ctx, object)
	}
	return nil
}

func (p *provisioner) provision(ctx context.Context, claim *core.PersistentVolumeClaim) error {
	if claim.Annotations[forProvisioner] != provisionerName || claim.Spec.VolumeName != "" || claim.DeletionTimestamp != nil {
		return nil
	}
	volume := volumeFor(claim, p.dir)
	path := volume.Spec.HostPath.Path
	if err := os.MkdirAll(path, 0o777); err != nil {
		return err
	}
	if err := os.Chmod(path, 0o777); err != nil { // hostPath volumes get no fsGroup, and the umask is not ours
		return err
	}
	_, err := p.client.CoreV1().PersistentVolumes().Create(ctx, volume, meta.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	klog.InfoS("provisioned", "claim", klog.KObj(claim), "path", path, "err", err)
	return err
}

func volumeFor(claim *core.PersistentVolumeClaim, dir string) *core.PersistentVolume {
	name := "pvc-" + string(claim.UID)
	directory := core.HostPathDirectory
	return &core.PersistentVolume{
		ObjectMeta: meta.ObjectMeta{Name: name, Annotations: map[string]string{provisionedBy: provisionerName}},
		Spec: core.PersistentVolumeSpec{
			AccessModes:                   claim.Spec.AccessModes,
			Capacity:                      core.ResourceList{core.ResourceStorage: claim.Spec.Resources.Requests[core.ResourceStorage]},
			ClaimRef:                      &core.ObjectReference{Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID},
			PersistentVolumeReclaimPolicy: core.PersistentVolumeReclaimDelete,
			StorageClassName:              *claim.Spec.StorageClassName,
			VolumeMode:                    claim.Spec.VolumeMode,
			PersistentVolumeSource: core.PersistentVolumeSource{
				HostPath: &core.HostPathVolumeSource{Path: filepath.Join(dir, name), Type: &directory},
			},
		},
	}
}

func (p *provisioner) reclaim(ctx context.Context, volume *core.PersistentVolume) error {
	ours := volume.Annotations[provisionedBy] == provisionerName && volume.Spec.HostPath != nil
	if !ours || volume.Status.Phase != core.VolumeReleased || volume.Spec.PersistentVolumeReclaimPolicy != core.PersistentVolumeReclaimDelete {
		return nil
	}
	if err := os.RemoveAll(filepath.Join(p.dir, volume.Name)); err != nil {
		return err
	}
	klog.InfoS("removed", "volume", volume.Name)
	return ignoreNotFound(p.client.CoreV1().PersistentVolumes().Delete(ctx, volume.Name, meta.DeleteOptions{}))
}

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
